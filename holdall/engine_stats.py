"""What one answer took."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Stats:
    """What the last answer took."""

    prompt_tokens: int = 0
    new_tokens: int = 0
    open_seconds: float = 0.0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    kv_bytes: int = 0
    kv_full_bytes: int = 0
    context_tokens: int = 0  # that were read before, and are on disk
    passes: int = 0  # over the prompt; more than one with a kv method means that it was judged chunk by chunk

    def figures(self) -> dict[str, float]:
        """As a report's row. The first new token comes out of the prefill."""
        steps = max(0, self.new_tokens - 1)
        row = {k: v for k, v in self.__dict__.items() if not k.startswith("_")}
        row["prefill_tokens_per_second"] = self.prompt_tokens / max(self.prefill_seconds, 1e-9)
        row["tokens_per_second"] = steps / self.decode_seconds if self.decode_seconds else 0.0
        return row
