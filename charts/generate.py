"""What the chart takes from the code, and its README: ``python charts/generate.py [--check]``."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from common.background import Role
from common.errors import NotFound
from common.identity.callers import CALLEES
from common.rpc.contract import operations
from common.settings import PREFIX, Settings
from fleet.environment import variable
from fleet.layout import envoy
from fleet.services import SERVICES

CHART = Path(__file__).parent / "mindweave"
SAID = "# Made by charts/generate.py from {}; `make chart` makes it anew.\n"
# A part of deploy/prometheus, to which a link leads.
RULES = "files/rules/services.yaml"
# Settings that the chart decides itself, or that are secrets.
_NOT_FREE = frozenset(
    {
        *("addresses", "cache_url", "data", "database_owner_urls", "database_url"),
        *("database_urls", "grpc_listen", "instance", "kafka_brokers", "kafka_ca_file"),
        *("kafka_password", "kafka_replication", "kafka_sasl_mechanism", "kafka_username"),
        *("kafka_security_protocol", "listen", "metrics_listen", "redis_url", "secret"),
        *("startup_timeout", "trusted_proxies", "embedded_buffers_mb"),
    }
)
_EDGE_PORT = 8080
_COLUMN = re.compile(r"^( *)([A-Za-z_][\w]*):")
# The lines of an alert that miss a service wherever Prometheus does not see it.
_MISSED = re.compile(r"(?:^ +or absent\(mindweave_ready\{.*\}\)\n)+", re.MULTILINE)


def callers() -> str:
    table = {caller: sorted(callees) for caller, callees in sorted(CALLEES.items())}
    told = "libs/common/identity/callers.py"
    return SAID.format(told) + yaml.safe_dump({"callees": table}, sort_keys=False)


def routes() -> str:
    """Whose each path is, the most particular first."""
    found = envoy.fronts(operations().values())
    listed = [
        {"path": front.path, "method": front.method or "", "service": found[front]}
        for front in sorted(found, key=envoy.precedence, reverse=True)
    ]
    return SAID.format("the protos") + yaml.safe_dump({"routes": listed}, sort_keys=False)


def edge() -> str:
    """Envoy's bootstrap, as ``mindweave up`` has it, to services by their names."""
    paths = envoy.fronts(operations().values())
    ports = {name: [_EDGE_PORT] for name in paths.values()}
    made = envoy.configuration(f"0.0.0.0:{_EDGE_PORT}", paths, ports)
    for cluster in made["static_resources"]["clusters"]:
        name = f"{cluster['name'].replace('_', '-')}-pods"
        cluster |= {"type": "STRICT_DNS", "dns_refresh_rate": "1s"}
        cluster["load_assignment"]["endpoints"] = [
            {
                "lb_endpoints": [
                    {
                        "endpoint": {
                            "address": {
                                "socket_address": {"address": name, "port_value": _EDGE_PORT}
                            }
                        }
                    }
                ]
            }
        ]
    made["admin"] = {"address": {"socket_address": {"address": "127.0.0.1", "port_value": 9901}}}
    return json.dumps(made, indent=1) + "\n"


def answers() -> str:
    """What makes Istio's ingress answer by itself, and bound what it takes, as the edge does."""
    # It refuses names that are not ours.
    limits = envoy.answers_and_limits({403: NotFound})
    manager = {"@type": envoy.CONNECTION_MANAGER_TYPE, **limits}
    made = {
        "apiVersion": "networking.istio.io/v1alpha3",
        "kind": "EnvoyFilter",
        "metadata": {"name": "answers", "namespace": "istio-ingress"},
        "spec": {
            "workloadSelector": {"labels": {"istio": "ingress"}},
            "configPatches": [
                {
                    "applyTo": "NETWORK_FILTER",
                    "match": {
                        "context": "GATEWAY",
                        "listener": {"filterChain": {"filter": {"name": envoy.CONNECTION_MANAGER}}},
                    },
                    "patch": {"operation": "MERGE", "value": {"typed_config": manager}},
                }
            ],
        },
    }
    return SAID.format("libs/fleet/layout/envoy.py") + yaml.safe_dump(made, sort_keys=False)


def free_settings() -> list[str]:
    """The variables that values may set."""
    names = []
    for field, said in Settings.model_fields.items():
        if field in _NOT_FREE:
            continue
        inner = getattr(said.annotation, "model_fields", None)
        if inner is None:
            names.append(variable(field))
        else:
            names += [f"{PREFIX}{field.upper()}__{name.upper()}" for name in inner]
    return sorted(names)


def schema() -> str:
    document = json.loads((CHART / "values.schema.json").read_text())
    document["$defs"]["settings"]["propertyNames"] = {"enum": free_settings()}
    return json.dumps(document, indent=2) + "\n"


def rules() -> str:
    """The rules, which are written by hand but for the services that are missed."""
    missed = "".join(
        f'          or absent(mindweave_ready{{service="{service}", role="{role}"}})\n'
        for service in SERVICES
        for role in Role
    )
    return _MISSED.sub(missed, (CHART / RULES).read_text())


def readme() -> str:
    text = (CHART / "values.yaml").read_text()
    values = yaml.safe_load(text)
    rows = "\n".join(
        f"| `{name}` | {_told(_at(values, name))} | {comment} |"
        for name, comment in _described(text, values)
    )
    return f"""<!-- Made by charts/generate.py from values.yaml; `make chart` makes it anew. -->
# The chart `mindweave`

`helm install mindweave charts/mindweave` makes a whole fleet with servers for trying out; with
addresses and names of Secrets it is the production install ([docs](../../docs/kubernetes.md)).
One fleet lives in a namespace.

| value | default | meaning |
| --- | --- | --- |
{rows}
"""


def _described(text: str, values: Any) -> Iterator[tuple[str, str]]:
    """Each value that a comment stands above, by its path, with that comment."""
    path: list[tuple[int, str]] = []
    comment: list[str] = []
    for line in text.splitlines():
        if line.strip().startswith("#"):
            comment.append(line.strip().lstrip("# "))
            continue
        found = _COLUMN.match(line)
        if found is not None:
            indent = len(found[1])
            path = [step for step in path if step[0] < indent] + [(indent, found[2])]
            if comment:
                yield ".".join(name for _, name in path), " ".join(comment)
        comment = []


def _at(values: Any, name: str) -> Any:
    for step in name.split("."):
        values = values[step]
    return values


def _told(value: Any) -> str:
    if isinstance(value, dict) and value:
        return ""
    return f"`{json.dumps(value)}`"


MADE = {
    "files/callers.yaml": callers,
    "files/routes.yaml": routes,
    "files/edge.json": edge,
    "../../deploy/istio/answers.yaml": answers,
    RULES: rules,
    "values.schema.json": schema,
    "README.md": readme,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only say what is not as made")
    check = parser.parse_args().check
    stale = []
    for name, make in MADE.items():
        file, made = CHART / name, make()
        if file.exists() and file.read_text() == made:
            continue
        stale.append(str(file))
        if not check:
            file.write_text(made)
    if check and stale:
        sys.exit(f"not as the code makes them (make chart): {', '.join(stale)}")


if __name__ == "__main__":
    main()
