"""REST from the contract: routes, JSON, OpenAPI and the page that shows it."""
