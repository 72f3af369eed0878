"""How far a merged model is from its adapter on the 16-bit base, in plain transformers and PEFT, over some rows.

    python bench/compare_merged.py BASE ADAPTER MERGED ROWS [--vision] [--count N] [--device cuda]

Prints one JSON line: places compared, the share whose likeliest next token is the same, and the largest difference of
a logit beside the largest logit. Both models are loaded in the precision that the merged one is stored in.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path
from typing import Any


def rows_of(folder: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of a local dataset's training split, pictures still encoded."""
    from datasets import Image, load_dataset, load_from_disk

    if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
        found = load_from_disk(str(folder))
        rows = found["train"] if "train" in getattr(found, "keys", list)() else found
    else:
        rows = load_dataset(str(folder), split="train")
    if "images" in rows.column_names and isinstance(getattr(rows.features["images"], "feature", None), Image):
        rows = rows.cast_column("images", [Image(decode=False)])
    return [dict(row) for row in rows.select(range(min(count, len(rows))))]


def encode(reader: Any, row: dict[str, Any], vision: bool) -> Any:
    """One row as the model's inputs."""
    messages = row["messages"]
    if not vision:
        return reader(
            reader.apply_chat_template(messages, tokenize=False), add_special_tokens=False, return_tensors="pt"
        )
    from PIL import Image

    pictures = [Image.open(io.BytesIO(picture["bytes"])).convert("RGB") for picture in row["images"]]
    said, waiting = [], len(pictures)
    for message in messages:
        content = message["content"]
        if isinstance(content, str):
            texts = content.split("<image>")
            parts: list[dict[str, Any]] = [{"type": "text", "text": texts[0]}] if texts[0] else []
            for text in texts[1:]:
                parts += [{"type": "image"}, {"type": "text", "text": text}]
                waiting -= 1
        else:
            # Tables fill every part up with the others' empty fields.
            parts = [{"type": "image"} if part["type"] == "image" else {"type": "text", "text": part["text"] or ""}
                     for part in content]  # fmt: skip
            waiting -= sum(part["type"] == "image" for part in parts)
        said.append({"role": message["role"], "content": parts})
    first = next(message for message in said if message["role"] == "user")
    first["content"] = [{"type": "image"}] * waiting + first["content"]
    text = reader.apply_chat_template(said, tokenize=False)
    return reader(text=[text], images=[pictures], add_special_tokens=False, return_tensors="pt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("base", "adapter", "merged", "rows"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--vision", action="store_true")
    parser.add_argument("--count", type=int, default=8)
    parser.add_argument("--device", default="cuda")
    args = parser.parse_args()

    import torch
    import transformers
    from peft import PeftModel

    kind = "AutoModelForImageTextToText" if args.vision else "AutoModelForCausalLM"
    auto = getattr(transformers, kind)
    reader = (transformers.AutoProcessor if args.vision else transformers.AutoTokenizer).from_pretrained(args.merged)
    inputs = [encode(reader, row, args.vision) for row in rows_of(args.rows, args.count)]

    def logits(model: Any) -> list[Any]:
        model = model.to(args.device).eval()
        with torch.inference_mode():
            return [model(**each.to(args.device)).logits[0].float().cpu() for each in inputs]

    merged = auto.from_pretrained(args.merged, dtype="auto")
    dtype = merged.dtype
    found = logits(merged)
    del merged
    base = auto.from_pretrained(args.base, dtype=dtype)
    without = logits(base)
    known = logits(PeftModel.from_pretrained(base, args.adapter))
    pairs = list(zip(known, found, strict=True))
    places = sum(len(one) for one, _ in pairs)
    same = sum(int((one.argmax(-1) == other.argmax(-1)).sum()) for one, other in pairs)
    print(
        json.dumps(
            {
                "dtype": str(dtype),
                "places": places,
                "same_top1": round(same / places, 4),
                "largest_difference": round(max(float((one - other).abs().max()) for one, other in pairs), 4),
                "mean_difference": round(
                    sum(float((one - other).abs().mean()) for one, other in pairs) / len(pairs), 5
                ),
                "largest_logit": round(max(float(one.abs().max()) for one in known), 2),
                # What the adapter changes: how far the base without it is.
                "adapter_changes": round(
                    max(float((one - other).abs().max()) for one, other in zip(known, without, strict=True)), 4
                ),
            }
        ),
        flush=True,
    )


if __name__ == "__main__":
    main()
