"""Describe the addresses of nginx for programs, by OpenAPI, from the code that answers there."""

import ast
import json
import re
from collections import defaultdict
from functools import cache
from importlib.metadata import version
from typing import Any

from pydantic import TypeAdapter

from visionserve.answer import Answer
from visionserve.config import Options
from visionserve.sampling import Report
from visionserve_tools import paths

FILE = paths.CONFIG / "openapi.json"
REFERENCE = "#/components/schemas/{model}"
TEXT, WHOLE = {"type": "string"}, {"type": "integer"}
PNG = "image/png"
NGINX = re.compile(r"""^ +(\d{3}) '\{"error":\{"code":"(\w+)\"""", re.MULTILINE)
GATE = re.compile(r'refuse\(\s*(\d{3}), "(\w+)"')

IMAGE = {"type": "string", "format": "binary"}
BASE64 = {"type": "string", "contentEncoding": "base64"}


def encoded() -> str:
    """Return the description as the file holds it."""
    return json.dumps(describe(), indent=1, ensure_ascii=False) + "\n"


@cache
def codes() -> dict[int, list[str]]:
    """Return each status's codes, as the handler's source and nginx's configuration name them."""
    found = defaultdict[int, set[str]](set)
    for file in (paths.HANDLER / "visionserve").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            match node:
                case ast.Call(
                    func=ast.Name("RequestError"),
                    args=[ast.Constant(int(status)), ast.Constant(str(code)), *_],
                ):
                    found[status].add(code)
    for name, pattern in (("nginx.conf", NGINX), ("gate.lua", GATE)):
        text = (paths.CONFIG / "nginx" / name).read_text(encoding="utf-8")
        for status, code in pattern.findall(text):
            found[int(status)].add(code)
    # What `gate.lua` says of bodies that TorchServe or `form.lua` cannot read.
    found[400] |= {"invalid_form", "malformed_body"}
    found[413].add("invalid_form")
    return {status: sorted(names) for status, names in sorted(found.items())}


def describe() -> dict[str, Any]:
    """Return the description, by OpenAPI 3.1.

    Options and answers are the schemas of `visionserve.config.Options` and
    `visionserve.answer.Answer`; statuses are those of `codes`.
    """
    options = Options.model_json_schema(ref_template=REFERENCE)
    for schema in options["properties"].values():
        del schema["default"]  # It is the profile's, and clients would send another one.
    report = Report.model_json_schema()
    del report["properties"]["id"]["default"]
    answer = TypeAdapter(Answer).json_schema(ref_template=REFERENCE)
    schemas = {
        **answer.pop("$defs"),
        "Options": options,
        "Report": report,
        "ReportBody": {
            "type": "object",
            "properties": {"report": _schema("Report"), "data": BASE64},
            "required": ["report"],
        },
        "Reported": _object(sample=TEXT, reported={"type": "array", "items": TEXT}),
        "Answer": answer,
        "Error": _object(error=_object(code=TEXT, message=TEXT)),
        "TorchServeError": _object(code=WHOLE, type=TEXT, message=TEXT),
        "ProtocolError": _object(error=TEXT),
    }
    schemas["Form"] = _with_options("Form", options, _one_or_more(IMAGE))
    schemas["Images"] = _with_options("Images", options, _one_or_more(BASE64))
    image = {
        "application/octet-stream": {"schema": IMAGE},
        "multipart/form-data": {"schema": _schema("Form")},
        "application/json": {"schema": {"anyOf": [_schema("Images"), _schema("ReportBody")]}},
    }
    tensor = _object(name=TEXT, datatype=TEXT, shape=_list(WHOLE))
    more = {"data": _list({}), "parameters": {"type": "object"}}
    schemas["Tensor"] = tensor | {"properties": tensor["properties"] | more}
    tensors = _object(inputs=_list(_schema("Tensor")))
    named = _object(name=TEXT)
    named["properties"] |= {"parameters": _object(binary_data={"type": "boolean"})}
    tensors["properties"] |= {
        "id": TEXT,
        "parameters": {"type": "object"},
        "outputs": _list(named),
    }
    found = _object(model_name=TEXT, model_version=TEXT, outputs=_list(_schema("Tensor")))
    found["properties"] |= {"id": TEXT}
    schemas |= {"Tensors": tensors, "TensorsFound": found}
    instance = {"anyOf": [BASE64, _object(b64=BASE64)]}
    v1: dict[str, Any] = {
        "type": "object",
        "properties": {"instances": _list(instance)},
    }
    v1 |= {"required": ["instances"], "additionalProperties": True}
    paths_of: dict[str, Any] = {}
    for door in ("predictions", "explanations"):
        for place in ("{model}", "{model}/{version}"):
            paths_of[f"/{door}/{place}"] = _door(f"/{door}/{place}", image, _answers(), False)
    paths_of["/invocations"] = _door("/invocations", image, _answers(), False)
    for word in ("predict", "explain"):
        body: dict[str, Any] = {"application/json": {"schema": v1}}
        reply = _object(predictions=_list({"anyOf": [_schema("Answer"), _schema("Error")]}))
        paths_of[f"/v1/models/{{model}}:{word}"] = _door(
            f"{{model}}:{word}", body, {"200": reply, "207": reply}
        )
    for place in ("{model}", "{model}/versions/{version}"):
        at = f"/v2/models/{place}"
        for word in ("infer", "explain"):
            # Binary tensors, or an image, which is answered as at /predictions.
            body = {"application/json": {"schema": _schema("Tensors")}}
            body["application/octet-stream"] = {"schema": IMAGE}
            either = {"anyOf": [_schema("TensorsFound"), _schema("Answer")]}
            infer = _door(at, body, {"200": either})
            content = infer["post"]["responses"]["200"]["content"]
            content |= {kind: {"schema": IMAGE} for kind in ("application/octet-stream", PNG)}
            paths_of[f"{at}/{word}"] = infer
        paths_of[at] = _asked(at, _object(name=TEXT, inputs=_list(_schema("Tensor"))))
        paths_of[f"{at}/ready"] = _asked(at, _object(ready={"type": "boolean"}))
    paths_of["/v1/models/{model}"] = _asked("{model}", _object(ready={"type": "boolean"}))
    paths_of["/v2"] = _asked("/v2", _object(name=TEXT, version=TEXT))
    paths_of["/v2/health/live"] = _asked("", _object(live={"type": "boolean"}))
    paths_of["/v2/health/ready"] = _asked("", _object(ready={"type": "boolean"}))
    paths_of["/ping"] = _asked("", _object(status=TEXT), protocol=False)
    return {
        "openapi": "3.1.0",
        "info": {"title": "visionserve", "version": version("visionserve")},
        "paths": paths_of,
        "components": {
            "schemas": schemas,
            "parameters": _headers(options),
            "responses": _errors(),
        },
    }


def _object(**properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _list(items: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _one_or_more(schema: dict[str, Any]) -> dict[str, Any]:
    return {"anyOf": [schema, _list(schema) | {"minItems": 1}]}


def _with_options(title: str, options: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    properties = options["properties"] | {"data": data}
    return options | {"title": title, "properties": properties, "required": ["data"]}


def _schema(name: str) -> dict[str, str]:
    return {"$ref": REFERENCE.format(model=name)}


def _answers() -> dict[str, Any]:
    either = {"anyOf": [_schema("Answer"), _schema("Error")]}
    return {
        "200": {"anyOf": [*_one_or_more(_schema("Answer"))["anyOf"], _schema("Reported")]},
        "207": _list(either),
    }


def _door(
    path: str, body: dict[str, Any], replies: dict[str, Any], protocol: bool = True
) -> dict[str, Any]:
    """Describe an address that takes images; options may also be headers."""
    operation = {
        "parameters": [_shared("parameters", name) for name in Options.model_fields],
        "requestBody": {"required": True, "content": body},
        "responses": _responses(replies, protocol),
    }
    return {"parameters": _places(path), "post": operation}


def _asked(path: str, reply: dict[str, Any], protocol: bool = True) -> dict[str, Any]:
    responses = _responses({"200": reply}, protocol)
    if not _places(path):  # nginx tells in the same form that nothing is ready.
        responses["503"] = _response("Nothing can answer.", {})
    return {"parameters": _places(path), "get": {"responses": responses}}


def _places(path: str) -> list[dict[str, Any]]:
    schema = {"type": "string", "pattern": r"^[\w.-]{1,100}$"}
    names = re.findall(r"{(\w+)}", path)
    return [{"name": name, "in": "path", "required": True, "schema": schema} for name in names]


def _responses(replies: dict[str, Any], protocol: bool) -> dict[str, Any]:
    """Describe the answers, and refer to the errors that each address may give."""
    responses = {status: _response("The answer.", schema) for status, schema in replies.items()}
    if "207" in replies and not protocol:
        responses["200"]["content"][PNG] = {"schema": IMAGE}
    form = "protocol" if protocol else "error"
    errors = {str(status): _shared("responses", f"{form}-{status}") for status in codes()}
    return responses | errors


def _errors() -> dict[str, Any]:
    """Describe the errors in both forms: each status with its codes."""
    own = {"anyOf": [_schema("Error"), _schema("TorchServeError")]}
    return {
        f"{form}-{status}": _response(", ".join(names), schema)
        for form, schema in (("error", own), ("protocol", _schema("ProtocolError")))
        for status, names in codes().items()
    }


def _headers(options: dict[str, Any]) -> dict[str, Any]:
    """Describe the headers that are options."""
    return {
        name: {"name": f"X-Classify-{name.replace('_', '-')}", "in": "header", "schema": schema}
        for name, schema in options["properties"].items()
    }


def _response(about: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": about, "content": {"application/json": {"schema": schema}}}


def _shared(kind: str, name: str) -> dict[str, str]:
    return {"$ref": f"#/components/{kind}/{name}"}
