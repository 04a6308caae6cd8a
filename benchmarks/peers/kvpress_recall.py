"""kvpress's SnapKVPress on prompts given as token ids; run by benchmarks/kv.py in kvpress's own environment.

stdin: {"model": folder, "contexts": [{"context", "after", "probes": [{"question", "stem", "words", "right", "end"}],
"first": [{"prompt", "probe"}], "passages", "shown"}], "shares": {"10%": 0.1}, "windows": [32, 64]}. stdout, last line:
[{name: figures, or hits fact by fact}], one for each context.
All shares and windows are taken from one forward pass: the press below hands each layer's keys to every press. The
part of the text that all questions share is read once; its last tokens are read anew with each question, so that
every press has the hidden states of its whole window.
"""

import copy
import json
import sys

import torch
import torch.nn.functional as F
from kvpress import SnapKVPress
from kvpress.presses.base_press import BasePress
from kvpress.utils import extract_keys_and_values
from transformers import AutoModelForCausalLM, DynamicCache

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


def presses(task):
    return {
        f"kvpress snapkv w{w} {label}": SnapKVPress(compression_ratio=1 - share, window_size=w)
        for label, share in task["shares"].items()
        for w in task["windows"]
    }


def squeeze(model, task, whole, ids):
    """Every press's cache after `ids`, which follow what `whole` holds, and the whole one."""
    press, whole = Every(presses(task)), copy.deepcopy(whole)
    with press(model):
        model(torch.tensor([ids]), past_key_values=whole, logits_to_keep=1)
    return {"kvpress full": whole, **press.caches}


def logits(model, cache, ids, start):
    at = torch.arange(start, start + len(ids))[None]
    return model(torch.tensor([ids]), past_key_values=copy.deepcopy(cache), position_ids=at).logits[0].float()


def note(row, arm, scores, probe):
    right = probe["words"][probe["right"]]
    chosen = scores[probe["words"]].argmax() == probe["right"]
    row.setdefault("recall" + arm, []).append(float(chosen))
    row.setdefault("greedy" + arm, []).append(float(scores.argmax() == right))


def figures(model, task, told):
    context, base = told["context"], DynamicCache()
    model(torch.tensor([context[:-AGAIN]]), past_key_values=base, logits_to_keep=1)
    late = squeeze(model, task, base, context[-AGAIN:])
    rows = {
        name: {
            "bytes": sum(la.keys.nbytes + la.values.nbytes for la in c.layers),
            "entries": c.get_seq_length(),
        }
        for name, c in late.items()
    }
    for probe in told["probes"]:
        prompt = context + probe["question"]
        for name, cache in squeeze(model, task, base, prompt[-AGAIN - len(probe["question"]) :]).items():
            outside = probe["end"] <= len(prompt) - cache.get_seq_length()
            rows[name].setdefault("outside", []).append(float(outside))
            note(rows[name], "", logits(model, cache, probe["stem"], len(prompt))[-1], probe)
        for name, cache in late.items():
            scores = logits(model, cache, probe["question"] + probe["stem"], len(context))[-1]
            note(rows[name], "_late", scores, probe)
    for asked in told["first"]:
        ask_first(model, task, asked["prompt"], asked["probe"], rows)
    for name, cache in late.items():
        rows[name]["copy"] = copied(model, cache, told)
        scores = logits(model, cache, told["after"], len(context))[:-1]
        rows[name]["nll_after"] = float(F.cross_entropy(scores, torch.tensor(told["after"][1:])))
    return rows


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


@torch.inference_mode()
def main():
    task = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).eval()
    print(json.dumps([figures(model, task, told) for told in task["contexts"]]))


main()
