"""Makes the Secret NAME of in-cluster servers, in a pod: python make_secret.py NAME."""

import json
import os
import ssl
import sys
import urllib.error
import urllib.request
from pathlib import Path
from secrets import token_hex

ACCOUNT = Path(os.environ.get("SERVICE_ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
API = os.environ.get("KUBERNETES_API", "https://kubernetes.default.svc")
OWNER = "secrets-owner"


def ask(path, body=None):
    """The API server's answer, as JSON."""
    request = urllib.request.Request(
        f"{API}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={
            "Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}",
            "Content-Type": "application/json",
        },
    )
    trust = ssl.create_default_context(cafile=ACCOUNT / "ca.crt") if API[:5] == "https" else None
    with urllib.request.urlopen(request, timeout=30, context=trust) as answer:
        return json.load(answer)


def contents():
    postgresql, valkey = token_hex(24), token_hex(24)
    return {
        "secret": token_hex(32),
        "postgresql-password": postgresql,
        "valkey-password": valkey,
        "database-admin-url": f"postgresql://postgres:{postgresql}@postgresql:5432/postgres",
        "cache-url": f"redis://:{valkey}@cache:6379",
        "broker-url": f"redis://:{valkey}@broker:6379",
    }


def main(name):
    namespace = (ACCOUNT / "namespace").read_text()
    place = f"/api/v1/namespaces/{namespace}"
    owner = ask(f"{place}/serviceaccounts/{OWNER}")["metadata"]["uid"]
    reference = {"apiVersion": "v1", "kind": "ServiceAccount", "name": OWNER, "uid": owner}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": name, "ownerReferences": [reference]},
        "stringData": contents(),
    }
    try:
        ask(f"{place}/secrets", secret)
    except urllib.error.HTTPError as error:
        # It was made before: its contents stay.
        if error.code != 409:
            raise


if __name__ == "__main__":
    main(sys.argv[1])
