"""The OpenAPI 3.1 document, made from the protos alone."""

from services.gateway.http.openapi.document import document, rendered

__all__ = ["document", "rendered"]
