# One service: docker build --build-arg SERVICE=team . (make images makes them all). It holds the kit, the program and that
# service, with what these import, as uv.lock has it; it writes nowhere but in /tmp and needs no shell.
ARG PYTHON=python:3.11-slim-bookworm

FROM ${PYTHON} AS build
ARG UV_VERSION=0.13.8
# Files are dated so, and compiled without their dates: the same commit gives the same layers.
ARG SOURCE_DATE_EPOCH=1767225600
ENV PYTHONHASHSEED=0 UV_LINK_MODE=copy UV_NO_PROGRESS=1 UV_PYTHON_DOWNLOADS=never
RUN --mount=type=cache,target=/root/.cache/pip pip install --root-user-action ignore uv==${UV_VERSION}
WORKDIR /build
COPY pyproject.toml uv.lock ./
RUN --mount=type=cache,target=/root/.cache/uv uv sync --locked --only-group image
ARG SERVICE
RUN --mount=type=cache,target=/root/.cache/uv \
    if grep -q "^${SERVICE:?is needed} = " pyproject.toml; then group=$SERVICE; else group=kit; fi \
    && UV_PROJECT_ENVIRONMENT=/app UV_COMPILE_BYTECODE=0 uv sync --locked --only-group $group
COPY README.md ./
COPY libs libs
COPY services/__init__.py services/
COPY services/${SERVICE} services/${SERVICE}
RUN SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH} .venv/bin/hatchling build --target wheel --directory dist \
    && uv pip install --python /app/bin/python --no-deps --no-cache dist/*.whl \
    && .venv/bin/cyclonedx-py environment /app/bin/python --pyproject pyproject.toml \
        --output-reproducible --output-format JSON --output-file /app/sbom.cdx.json \
    && PYTHONPYCACHEPREFIX=/app/compiled python -m compileall -q --invalidation-mode unchecked-hash \
        -x '/(test|tests|idlelib|lib2to3|tkinter|turtledemo|ensurepip)/' /app/lib /usr/local/lib/python3.11 \
    && find /app -depth \( -name __pycache__ -path '/app/lib/*' -o -path '/app/compiled/usr/local/lib/python3.11/site-packages' \) -exec rm -r {} + \
    && find /app -name uv_cache.json -delete \
    && find /app -exec touch --no-dereference --date=@${SOURCE_DATE_EPOCH} {} +

FROM ${PYTHON}
ARG SERVICE
LABEL org.opencontainers.image.title=mindweave-${SERVICE}
ENV HOME=/tmp PATH=/app/bin:/usr/local/bin:/usr/bin:/bin PYTHONDONTWRITEBYTECODE=1 PYTHONPYCACHEPREFIX=/app/compiled PYTHONSAFEPATH=1 \
    MINDWEAVE_GRPC_LISTEN=0.0.0.0:9000 MINDWEAVE_LISTEN=0.0.0.0:8080 MINDWEAVE_METRICS_LISTEN=0.0.0.0:9090
COPY --from=build /app /app
USER 10001:10001
EXPOSE 8080 9000 9090
ENTRYPOINT ["/app/bin/mindweave"]
