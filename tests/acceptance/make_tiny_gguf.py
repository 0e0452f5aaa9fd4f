"""Write a tiny random-weight llama-architecture GGUF for tests (no download, ~0.5 MB).

    pip install gguf
    python make_tiny_gguf.py tiny.gguf [--seed N] [--reply-len N] [--calls] [--ctx N]

The model knows nothing; it babbles.  Hidden dimension 0 is made to stay large
and positive, so column 0 of the output matrix acts as a per-token bias.  That
bias keeps the babble to printable ASCII, makes it stop after about --reply-len
tokens, and closes JSON strings early when a grammar constrains the output.
"""

from __future__ import annotations

import argparse
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.floating[Any]]

DIM, LAYERS, HEADS, FFN = 64, 2, 4, 128
CONTROL = ["<s>", "</s>", "<|im_start|>", "<|im_end|>", "<tool_call>"]
END, CALL = 1 + CONTROL.index("<|im_end|>"), 1 + CONTROL.index("<tool_call>")
TEMPLATE = """\
{%- if tools %}<|im_start|>system
<tools>
{%- for tool in tools %}
{{ tool | tojson }}
{%- endfor %}
</tools>
Call with <tool_call>{"name": ..., "arguments": ...}</tool_call><|im_end|>
{% endif %}
{%- for m in messages %}<|im_start|>{{ m.role }}
{{ m.content or "" }}
{%- for call in m.tool_calls or [] %}<tool_call>{"name": "{{ call.function.name }}", "arguments": {{ call.function.arguments | tojson }}}</tool_call>
{%- endfor %}<|im_end|>
{% endfor %}
{%- if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""


def vocabulary() -> list[tuple[str, gguf.TokenType]]:
    """Control tokens, the 256 bytes, then every printable ASCII character."""
    kind = gguf.TokenType
    vocab = [("<unk>", kind.UNKNOWN)] + [(t, kind.CONTROL) for t in CONTROL]
    vocab += [(f"<0x{b:02X}>", kind.BYTE) for b in range(256)]
    vocab += [("\u2581" if c == 32 else chr(c), kind.NORMAL) for c in range(32, 127)]
    return vocab


def bias(vocab: list[tuple[str, gguf.TokenType]], reply_len: int, calls: bool) -> Floats:
    """Log-odds of each token, before the model's random part is added."""
    out = np.full(len(vocab), -30.0)
    for i, (text, kind) in enumerate(vocab):
        if kind == gguf.TokenType.NORMAL:
            out[i] = 1.0 if text.islower() else 2.5 if text == "\u2581" else 0.0
            if text in '"}]':
                out[i] = 1.0
    out[[END, CALL] if calls else END] = np.log(np.exp(out).sum() / reply_len)
    return out


def main() -> None:
    """Write the model that the command line asks for."""
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("path")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--reply-len", type=int, default=60, help="mean reply length in tokens")
    ap.add_argument("--calls", action="store_true", help="start a tool call about as often as a reply ends")
    ap.add_argument("--ctx", type=int, default=8192)
    args = ap.parse_args()
    rng = np.random.default_rng(args.seed)
    vocab = vocabulary()

    def rand(*shape: int, scale: float) -> Floats:
        return rng.normal(0, scale, shape).astype(np.float32)

    w = gguf.GGUFWriter(args.path, "llama")
    w.add_name("tiny-random")
    w.add_file_type(gguf.LlamaFileType.ALL_F32)
    w.add_vocab_size(len(vocab))
    w.add_context_length(args.ctx)
    w.add_embedding_length(DIM)
    w.add_block_count(LAYERS)
    w.add_feed_forward_length(FFN)
    w.add_head_count(HEADS)
    w.add_head_count_kv(HEADS)
    w.add_rope_dimension_count(DIM // HEADS)
    w.add_layer_norm_rms_eps(1e-5)
    w.add_tokenizer_model("llama")
    w.add_tokenizer_pre("default")
    w.add_token_list([t for t, _ in vocab])
    w.add_token_scores([0.0] * len(vocab))
    w.add_token_types([int(k) for _, k in vocab])
    w.add_unk_token_id(0)
    w.add_bos_token_id(1)
    w.add_eos_token_id(END)
    w.add_add_bos_token(True)
    w.add_add_space_prefix(False)
    w.add_chat_template(TEMPLATE)

    embed = rand(len(vocab), DIM, scale=1.0)
    embed[:, 0] = 24.0  # so after RMS norm dimension 0 is close to sqrt(DIM)
    head = rand(len(vocab), DIM, scale=0.4)
    head[:, 0] = bias(vocab, args.reply_len, args.calls) / np.sqrt(DIM)
    w.add_tensor("token_embd.weight", embed)
    w.add_tensor("output.weight", head)
    w.add_tensor("output_norm.weight", np.ones(DIM, np.float32))
    for n in range(LAYERS):
        w.add_tensor(f"blk.{n}.attn_norm.weight", np.ones(DIM, np.float32))
        w.add_tensor(f"blk.{n}.ffn_norm.weight", np.ones(DIM, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            w.add_tensor(f"blk.{n}.{name}.weight", rand(DIM, DIM, scale=0.05))
        for name, shape in (("ffn_gate", (FFN, DIM)), ("ffn_up", (FFN, DIM)), ("ffn_down", (DIM, FFN))):
            w.add_tensor(f"blk.{n}.{name}.weight", rand(*shape, scale=0.05))
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()


if __name__ == "__main__":
    main()
