"""The processes of the service: TorchServe and nginx, and the client that asks them."""
