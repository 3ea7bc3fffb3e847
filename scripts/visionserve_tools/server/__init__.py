"""The processes of the service: TorchServe, nginx, and a client for TorchServe's APIs."""
