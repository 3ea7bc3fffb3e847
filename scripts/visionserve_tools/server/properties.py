"""Read and write `config.properties`, and check for keys that TorchServe does not know."""

import ipaddress
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

from visionserve_tools.errors import closest
from visionserve_tools.kept import read_file

# The keys that TorchServe 0.12.0 reads, in org.pytorch.serve.util.ConfigManager and in
# ts.model_server. It ignores all other keys.
KEYS = """
allowed_urls async_logging blacklist_env_vars certificate_file cors_allowed_headers
cors_allowed_methods cors_allowed_origin cpp_log_config cpu_launcher_args cpu_launcher_enable
debug decode_input_request default_response_timeout default_service_handler
default_startup_timeout default_workers_per_model disable_system_metrics
disable_token_authorization enable_envvars_config enable_grpc_ssl enable_metrics_api
enable_model_api grpc_inference_address grpc_inference_max_connection_age_grace_ms
grpc_inference_max_connection_age_ms grpc_inference_port grpc_management_address
grpc_management_max_connection_age_grace_ms grpc_management_max_connection_age_ms
grpc_management_port inference_address initial_distribution_port initial_worker_port
install_py_dep_per_model io_ratio ipex_enable ipex_gpu_enable job_queue_size keystore
keystore_pass keystore_type limit_max_image_pixels load_models management_address
max_request_size max_response_size metric_time_interval metrics_address metrics_config
metrics_mode model_metrics_auto_detect model_server_home model_snapshot model_store models
netty_client_threads number_of_gpu number_of_netty_threads plugins_path prefer_direct_buffer
private_key_file service_envelope system_metrics_cmd token_expiration_min
ts_header_key_sequence_end ts_header_key_sequence_id ts_header_key_sequence_start
ts_open_inference_protocol unregister_model_timeout use_env_allowed_urls use_native_io vmargs
workflow_store
"""
KNOWN = frozenset(KEYS.split())
ADDRESSES = ("inference_address", "management_address", "metrics_address")
GRPC_ADDRESSES = frozenset({"grpc_inference_address", "grpc_management_address"})
# The broadcast address, which Linux lets nobody connect to.
NOWHERE = "255.255.255.255"
NUMBERS = """
default_response_timeout default_startup_timeout default_workers_per_model grpc_inference_port
grpc_management_port initial_distribution_port initial_worker_port job_queue_size max_request_size
max_response_size metric_time_interval netty_client_threads number_of_gpu number_of_netty_threads
unregister_model_timeout
"""
WHOLE = frozenset(NUMBERS.split())
PORTS, MAX_INT = 65535, 2**31 - 1
WHITESPACE = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}


class UnknownPropertyError(ValueError):
    """TorchServe has no such property."""


def check_properties(keys: Iterable[str]) -> None:
    """Refuse keys that TorchServe would ignore.

    Raises:
        UnknownPropertyError: a key is unknown; the message suggests the known key most like it.
    """
    for key in keys:
        if key not in KNOWN:
            hint = closest(key, KNOWN)
            raise UnknownPropertyError(f"TorchServe has no property {key}{hint}.")


def check_values(properties: Mapping[str, str]) -> None:
    """Refuse numbers and addresses that TorchServe cannot read, and an open door without a token.

    Args:
        properties: all properties of a server.

    Raises:
        ValueError: a number is none; an address has another form than `http://HOST:PORT` or
            `unix:PATH`; or an API that asks for no token would listen on more than loopback.
    """
    for key in WHOLE & properties.keys():
        text, most = properties[key], PORTS if key.endswith("_port") else MAX_INT
        if not (text.isascii() and text.isdigit() and int(text) <= most):
            raise ValueError(f"{key}={text}: give a whole number from 0 to {most}.")
    is_open = properties.get("disable_token_authorization") == "true"
    for key in ADDRESSES:
        address = properties[key]
        if address.startswith("unix:") and address != "unix:":
            continue
        found = re.fullmatch(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\]):(\d{1,5})", address)
        if found is None or not 1 <= int(found[2]) <= PORTS:
            raise ValueError(
                f"{key}={address}: give http://HOST:PORT, or unix:PATH; ports are 1 to {PORTS}."
            )
        if is_open and key != "metrics_address":
            _check_closed(key, address, str(urlsplit(address).hostname))
    for key in GRPC_ADDRESSES & properties.keys():
        host = properties[key]
        if not _is_address(host):
            raise ValueError(f"{key}={host}: give an address without a port, such as 127.0.0.1.")
        if is_open and host != NOWHERE:
            _check_closed(key, host, host)


def _check_closed(key: str, address: str, host: str) -> None:
    """Refuse to listen on more than loopback."""
    if not (host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)):
        raise ValueError(
            f"{key}={address}: this profile asks for no token, so it listens on 127.0.0.1 "
            "alone. Take a profile with a token (server, edge), or add "
            "--set disable_token_authorization=false."
        )


def _is_address(host: str) -> bool:
    with suppress(ValueError):
        return bool(ipaddress.ip_address(host))
    return False


def read_properties(path: Path) -> dict[str, str]:
    r"""Return the properties in a file of `key=value` lines, `#` comments and `\` escapes.

    Spaces after a value are dropped, which Java would keep.

    Raises:
        OSError: the file cannot be read.
        ValueError: the file is another one.
    """
    try:
        lines = (line.strip() for line in read_file(path).decode().splitlines())
        pairs = (line.split("=", 1) for line in lines if line and not line.startswith("#"))
        return {key.strip(): _unescape(value.strip()) for key, value in pairs}
    except ValueError:
        raise ValueError(f"{path}: is no UTF-8 file of key=value lines.") from None


def write_properties(path: Path, properties: Mapping[str, str]) -> None:
    """Write properties so that `java.util.Properties` reads them, in ASCII.

    Java reads such a file as Latin-1, and other characters from escapes of UTF-16. A value's colons
    and equals signs need none, and get none, as TorchServe's Python reads some values as they are.
    """
    lines = (f"{key}={_escape(value)}\n" for key, value in properties.items())
    path.write_text("".join(lines), encoding="ascii")


def _escape(text: str) -> str:
    utf16 = text.encode("utf-16-be")
    units = (int.from_bytes(utf16[at : at + 2]) for at in range(0, len(utf16), 2))
    escaped = "".join(
        chr(unit) if " " <= chr(unit) <= "~" and chr(unit) != "\\" else f"\\u{unit:04x}"
        for unit in units
    )
    # Java drops the spaces before a value, and other readers those after it.
    return re.sub("^ +| +$", lambda spaces: len(spaces[0]) * r"\u0020", escaped)


def _unescape(text: str) -> str:
    """Return a value without its escapes, which are those of `java.util.Properties`."""

    def character(escape: re.Match[str]) -> str:
        code, other = escape.groups()
        return chr(int(code, 16)) if code else WHITESPACE.get(other, other)

    units = re.sub(r"\\(?:u([0-9a-fA-F]{4})|(.))", character, text)
    return units.encode("utf-16", "surrogatepass").decode("utf-16")
