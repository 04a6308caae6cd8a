"""kvpress's presses and transformers' quantised cache on prompts given as token ids; run by benchmarks/kv.py.

stdin: {"model": folder, "context": {"context", "after", "probes": [{"question", "stem", "words", "right", "end"}],
"first": [{"prompt", "probe"}], "passages", "shown"}, "shares": {"10%": 0.1}, "presses": {name: [class, options]},
"kvzip": {"25%": 0.25}, "quantized": [bits]}. stdout, last line: {name: figures, or hits fact by fact}.
All presses and shares are taken from one forward pass: the press below hands each layer's keys to every press. The
part of the text that all questions share is read once; its last tokens are read anew with each question, so that
every press has the hidden states of its whole window. KVzip and the quantised cache are asked late only: they do not
look at a question, and KVzip would score the text anew for each. KVzip masks and frees nothing: its bytes are those of
its share. The model is in bfloat16.
"""

import copy
import json
import sys
import time

import kvpress
import torch
import torch.nn.functional as F
from kvpress.presses.base_press import BasePress
from kvpress.utils import extract_keys_and_values
from transformers import AutoModelForCausalLM, DynamicCache, QuantizedCache

AGAIN = 100  # tokens


class Every(BasePress):
    """Compresses by several presses at once, each into a cache of its own; the running cache stays whole."""

    def __init__(self, presses):
        self.presses = presses
        self.caches = {name: DynamicCache() for name in presses}

    def forward_hook(self, module, input, kwargs, output):
        keys, values = extract_keys_and_values(kwargs["past_key_values"], module.layer_idx)
        self.compress(module, kwargs["hidden_states"], keys, values, output[1], kwargs)
        return output

    def compress(self, module, hidden_states, keys, values, attentions, kwargs):
        for name, press in self.presses.items():
            k, v = press.compress(module, hidden_states, keys, values, attentions, kwargs)
            self.caches[name].update(k.clone(), v.clone(), module.layer_idx)
        return keys, values


class Zip(kvpress.KVzipPress):
    """KVzip whose scores are kept, so that one reconstruction serves every share."""

    def compress_post(self, model):
        self.scores = self.score_val

    def mask(self, model, share):
        self.score_val, self.compression_ratio = self.scores.clone(), 1 - share
        super().compress_post(model)


def presses(task):
    return {
        f"kvpress {name} {label}": getattr(kvpress, kind)(compression_ratio=1 - share, **options)
        for name, (kind, options) in task["presses"].items()
        for label, share in task["shares"].items()
    }


def squeeze(model, task, whole, ids):
    """Every press's cache after `ids`, which follow what `whole` holds, and the whole one."""
    press, whole = Every(presses(task)), twin(whole)
    press.post_init_from_model(model)
    for inner in press.presses.values():
        inner.post_init_from_model(model)
    with press(model):
        model(torch.tensor([ids]), past_key_values=whole, logits_to_keep=1)
    return {"kvpress full": whole, **press.caches}


def logits(model, cache, ids, start):
    at = torch.arange(start, start + len(ids))[None]
    return model(torch.tensor([ids]), past_key_values=twin(cache), position_ids=at).logits[0].float()


def twin(cache):
    """A cache that goes on by itself: layers never change their tensors in place."""
    other = copy.copy(cache)
    other.layers = [copy.copy(layer) for layer in cache.layers]
    return other


def note(row, arm, scores, probe):
    right = probe["words"][probe["right"]]
    chosen = scores[probe["words"]].argmax() == probe["right"]
    row.setdefault("recall" + arm, []).append(float(chosen))
    row.setdefault("greedy" + arm, []).append(float(scores.argmax() == right))


def figures(model, task):
    told = task["context"]
    context, base = told["context"], DynamicCache()
    model(torch.tensor([context[:-AGAIN]]), past_key_values=base, logits_to_keep=1)
    late = squeeze(model, task, base, context[-AGAIN:])
    rows = {}
    for name, cache in late.items():
        held = sum(la.keys.nbytes + la.values.nbytes for la in cache.layers)
        rows[name] = {"bytes": held, "entries": cache.get_seq_length()}
    for probe in told["probes"]:
        prompt = context + probe["question"]
        for name, cache in squeeze(model, task, base, prompt[-AGAIN - len(probe["question"]) :]).items():
            outside = probe["end"] <= len(prompt) - cache.get_seq_length()
            rows[name].setdefault("outside", []).append(float(outside))
            note(rows[name], "", logits(model, cache, probe["stem"], len(prompt))[-1], probe)
    for asked in told["first"]:
        ask_first(model, task, asked["prompt"], asked["probe"], rows)
    for name, cache in late.items():
        ask_late(model, cache, told, rows[name])
    for share, row in zipped(model, task):
        rows[f"kvpress kvzip {share}"] = row
    for bits in task["quantized"]:
        rows[f"QuantizedCache {bits}bit"] = quantized(model, told, bits)
    return rows


def ask_late(model, cache, told, row):
    """What a cache that knew only the text gives back of it."""
    at = len(told["context"])
    for probe in told["probes"]:
        note(row, "_late", logits(model, cache, probe["question"] + probe["stem"], at)[-1], probe)
    row["copy"] = copied(model, cache, told)
    scores = logits(model, cache, told["after"], at)[:-1]
    row["nll_after"] = float(F.cross_entropy(scores, torch.tensor(told["after"][1:])))


def zipped(model, task):
    if not task["kvzip"]:
        return
    told, cache, press = task["context"], DynamicCache(), Zip(compression_ratio=0.5)
    ids = torch.tensor([told["context"]])
    start = time.process_time()
    with press(model):
        model(input_ids=ids, past_key_values=cache, logits_to_keep=1)
    took = time.process_time() - start
    for label, share in task["kvzip"].items():
        press.mask(model, share)
        held = share * sum(la.keys.nbytes + la.values.nbytes for la in cache.layers)
        row = {"bytes": held, "entries": share * ids.shape[1], "reading_seconds": took}
        ask_late(model, cache, told, row)
        yield label, row
    for layer in model.model.layers:
        layer.self_attn.masked_key_indices = None


def quantized(model, told, bits):
    cache = QuantizedCache("quanto", model.config, nbits=bits)
    model(torch.tensor([told["context"]]), past_key_values=cache, logits_to_keep=1)
    row = {"bytes": sum(packed(la) for la in cache.layers), "entries": cache.get_seq_length()}
    ask_late(model, cache, told, row)
    return row


def packed(layer):
    """Bytes of a quantised layer: codes, scales, shifts and what waits in full."""
    held = layer.keys.nbytes + layer.values.nbytes
    for part in (layer._quantized_keys, layer._quantized_values):
        held += part._data._data.nbytes + part._scale.nbytes + part._shift.nbytes
    return held


def ask_first(model, task, prompt, probe, rows):
    whole = DynamicCache()
    model(torch.tensor([prompt[:-AGAIN]]), past_key_values=whole, logits_to_keep=1)
    for name, cache in squeeze(model, task, whole, prompt[-AGAIN:]).items():
        note(rows[name], "_first", logits(model, cache, probe["stem"], len(prompt))[-1], probe)


def copied(model, cache, told):
    shown, hits = told["shown"], []
    for ids in told["passages"]:
        scores = logits(model, cache, ids, len(told["context"]))[shown - 1 : -1]
        hits.append(scores.argmax(1) == torch.tensor(ids[shown:]))
    return float(torch.cat(hits).float().mean())


@torch.no_grad()  # quanto fails under inference_mode
def main():
    task = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.bfloat16).eval()
    print(json.dumps(figures(model, task)))


main()
