"""JSON Schema of the objects of OpenAI's chat form, as far as a request holds them: what no Python type can say."""

from __future__ import annotations

from typing import Any

_LONGEST_DATA = 33_554_432


def _when(kind: str, *, others: tuple[str, ...]) -> dict[str, Any]:
    """Of a part that says that it is of this kind."""
    return {
        "if": {"required": ["type"], "properties": {"type": {"const": kind}}},
        "then": {"required": [kind], "properties": dict.fromkeys(others, False)},
    }


DEFINITIONS: dict[str, dict[str, Any]] = {
    "name": {
        "type": "string",
        "pattern": r"^[^\x00-\x1f\x7f]{1,200}$",
        "description": "A name without control characters.",
    },
    "function_name": {
        "type": "string",
        "pattern": "^[A-Za-z0-9_-]{1,64}$",
        "description": "What providers take for the name of a function.",
    },
    "tool": {
        "description": "A function that the model may call.",
        "type": "object",
        "required": ["type", "function"],
        "properties": {
            "type": {"description": "Always `function`.", "const": "function"},
            "function": {
                "description": "What can be called.",
                "type": "object",
                "required": ["name"],
                "properties": {
                    "name": {"description": "By which it is called.", "$ref": "#/$defs/function_name"},
                    "description": {"description": "For the model: what it does.", "type": "string"},
                    "parameters": {"description": "JSON Schema of its arguments.", "type": "object"},
                    "strict": {
                        "description": "Whether the provider must keep to `parameters`.",
                        "type": ["boolean", "null"],
                    },
                },
            },
        },
    },
    "message": {
        "description": "One chat message; what is not named here is passed on.",
        "type": "object",
        "required": ["role"],
        "properties": {
            "role": {"description": "Who speaks.", "enum": ["system", "developer", "user", "assistant", "tool"]},
            "content": {
                "description": "Text, or parts; may be absent from an assistant's message.",
                "type": ["string", "array", "null"],
                "items": {"$ref": "#/$defs/content_part"},
            },
            "name": {"description": "Who of several with this role.", "type": "string"},
            "tool_calls": {
                "description": "Of an assistant: the functions that it wanted called.",
                "type": ["array", "null"],
                "items": {"$ref": "#/$defs/tool_call"},
            },
            "tool_call_id": {"description": "Of a tool: which call this answers.", "type": "string"},
        },
        "patternProperties": {
            "^(?:image|audio|video|file|document|attachment)s?(?:_(?:urls?|ids?))?$": {
                "description": "Images and files are parts of the content.",
                "type": "null",
            }
        },
        "if": {"properties": {"role": {"const": "assistant"}}},
        "else": {
            "required": ["content"],
            "properties": {"content": {"type": ["string", "array"]}},
            "if": {"properties": {"role": {"const": "tool"}}},
            "then": {"required": ["tool_call_id"]},
        },
    },
    "content_part": {
        "description": "A part of a message's content: text, or an image or a file that is in it whole.  Nothing of a "
        "request chooses an address, and nothing names what lies at a provider.",
        "type": "object",
        "required": ["type"],
        "properties": {
            "type": {"description": "What it is.", "enum": ["text", "image_url", "file"]},
            "text": {"description": "Of a `text`.", "type": "string"},
            "image_url": {"description": "Of an `image_url`.", "$ref": "#/$defs/image"},
            "file": {"description": "Of a `file`.", "$ref": "#/$defs/file"},
        },
        "allOf": [
            _when("text", others=("image_url", "file")),
            _when("image_url", others=("text", "file")),
            _when("file", others=("text", "image_url")),
        ],
        "unevaluatedProperties": False,
    },
    "image": {
        "description": "An image.",
        "type": "object",
        "required": ["url"],
        "properties": {
            "url": {
                "description": "The image itself, as `data:image/…;base64,…`.",
                "type": "string",
                "maxLength": _LONGEST_DATA,
                "pattern": r"^data:image/(?:png|jpe?g|gif|webp|bmp|tiff|heic|heif|avif);base64,[A-Za-z0-9+/=_\s-]*$",
            },
            "detail": {"description": "How closely it is looked at.", "enum": ["auto", "low", "high"]},
        },
        "additionalProperties": False,
    },
    "file": {
        "description": "A file, for models that read files.",
        "type": "object",
        "required": ["file_data"],
        "properties": {
            "file_data": {
                "description": "The file itself, as `data:application/pdf;base64,…`.",
                "type": "string",
                "maxLength": _LONGEST_DATA,
                "pattern": r"^data:[a-z]{1,32}/[A-Za-z0-9.+-]{1,128};base64,[A-Za-z0-9+/=_\s-]*$",
            },
            "filename": {"description": "What it is called.", "$ref": "#/$defs/name"},
        },
        "additionalProperties": False,
    },
    "tool_call": {
        "description": "A function call that the model made earlier.",
        "type": "object",
        "required": ["id", "function"],
        "properties": {
            "id": {"description": "By which a `tool` message refers to it.", "type": "string"},
            "type": {"description": "Always `function`.", "const": "function"},
            "function": {
                "description": "What was to be called.",
                "type": "object",
                "required": ["name", "arguments"],
                "properties": {
                    "name": {"description": "As offered in `tools`.", "type": "string"},
                    "arguments": {"description": "A JSON object as text.", "type": "string"},
                },
            },
        },
    },
}
