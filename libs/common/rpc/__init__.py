"""gRPC between services: the contract, the server, the client, and what stands before each."""
