# One service: docker build --build-arg SERVICE=team . (make images makes them all). It holds the kit, the program and that
# service, with what these import as uv.lock has it, on a root with Python and nothing else to run.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG UV_VERSION=0.13.8
# Files are dated so, and compiled without their dates: the same commit gives the same layers.
ARG SOURCE_DATE_EPOCH=1767225600
ENV PYTHONHASHSEED=0 PYTHONDONTWRITEBYTECODE=1 UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
RUN apt-get update --quiet=2 && apt-get install --quiet=2 --no-install-recommends binutils libstdc++6 > /dev/null
RUN --mount=type=cache,target=/root/.cache/pip pip install --quiet --root-user-action ignore uv==${UV_VERSION}
WORKDIR /build
COPY images/root.py ./
# The standard library is compiled, too: on a read-only root every start would do it anew.
RUN python root.py /root/image && find /root/image/usr/local/lib -name '*.so*' -exec strip --strip-unneeded {} + \
    && PYTHONPYCACHEPREFIX=/compiled python -m compileall -q --invalidation-mode unchecked-hash \
        -s /root/image -p / /root/image/usr/local/lib \
    && mkdir /root/image/app && mv /compiled/root/image /root/image/app/compiled \
    && find /root/image -exec touch --no-dereference --date=@${SOURCE_DATE_EPOCH} {} +
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --quiet --locked --no-compile-bytecode --only-group image
ARG SERVICE
RUN --mount=type=cache,target=/root/.cache/uv \
    if grep -q "^${SERVICE:?is needed} = " pyproject.toml; then group=$SERVICE; else group=kit; fi \
    && UV_PROJECT_ENVIRONMENT=/app uv sync --quiet --locked --no-compile-bytecode --only-group $group \
    # Two fifths of the packages are what debuggers read.
    && find /app \( -name '*.abi3.so' -o -name '*-linux-gnu.so' \) -exec strip --strip-unneeded {} + \
    && python root.py /root/image /app
COPY README.md ./
COPY libs libs
COPY services/__init__.py services/
COPY services/${SERVICE} services/${SERVICE}
RUN SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} .venv/bin/hatchling build --target wheel --directory dist \
    && uv pip install --quiet --python /app/bin/python --no-deps --no-cache --no-compile-bytecode dist/*.whl \
    && .venv/bin/cyclonedx-py environment /app/bin/python --pyproject pyproject.toml \
        --output-reproducible --output-format JSON --output-file /app/sbom.cdx.json \
    && find /app \( -name uv_cache.json -o -name '*.py[xi]' -o -name '*.pxd' -o -name '*.[ch]' \) -delete \
    # But for what no service imports.
    && PYTHONPYCACHEPREFIX=/app/compiled python -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(pydantic/v1|pygments)/' /app/lib \
    && sed -i '/uv_cache.json/d' /app/lib/python3.11/site-packages/mindweave-*.dist-info/RECORD \
    && mkdir /root/service && mv /app /root/service/ \
    && find /root/service -exec touch --no-dereference --date=@${SOURCE_DATE_EPOCH} {} +

FROM scratch
ENV HOME=/tmp PATH=/app/bin:/usr/local/bin SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    PYTHONDONTWRITEBYTECODE=1 PYTHONPYCACHEPREFIX=/app/compiled PYTHONSAFEPATH=1 \
    MINDWEAVE_GRPC_LISTEN=0.0.0.0:9000 MINDWEAVE_LISTEN=0.0.0.0:8080 MINDWEAVE_METRICS_LISTEN=0.0.0.0:9090
COPY --from=build /root/image /
COPY --from=build /root/service /
ARG SERVICE
LABEL org.opencontainers.image.title=mindweave-${SERVICE}
USER 10001:10001
EXPOSE 8080 9000 9090
ENTRYPOINT ["/app/bin/mindweave"]
