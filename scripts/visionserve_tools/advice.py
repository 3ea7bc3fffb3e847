"""What messages tell the user to give: `make` in a checkout, and the command elsewhere."""

import sys

from visionserve_tools.paths import IN_CHECKOUT

PROGRAM = ".venv/bin/visionserve" if IN_CHECKOUT else "visionserve"
PYTHON = ".venv/bin/python" if IN_CHECKOUT else "python"


def serve(option: str, value: str) -> str:
    """Return how to start a server with an option: `profile`, `models` or `archive`."""
    if IN_CHECKOUT:
        return f"make serve {option.upper()}={value}"
    return f"{PROGRAM} serve start --{option} {value}"


def stop(profile: str) -> str:
    """Return how to stop a profile's server."""
    if IN_CHECKOUT:
        return f"make stop PROFILE={profile}"
    return f"{PROGRAM} serve stop --profile {profile}"


def end_without_sources(command: str) -> None:
    """End a command that reads or writes the project's sources, where a wheel is installed."""
    if not IN_CHECKOUT:
        sys.exit(f"visionserve {command} takes the project's sources: give it in a checkout.")
