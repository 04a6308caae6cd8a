"""kvpress's SnapKVPress on prompts given as token ids; run by benchmarks/kv.py in kvpress's own environment.

stdin: {"model": folder, "contexts": [{"context", "after", "probes": [{"question", "stem", "words", "right"}]}],
"shares": {"10%": 0.1}, "windows": [32, 64]}. stdout, last line: {name: [figures of each context]}.
All shares and windows are taken from one forward pass: the press below hands each layer's keys to every press. The
part of the text that all questions share is read once; its last tokens are read anew with each question, so that
every press has the hidden states of its whole window.
"""

import copy
import json
import sys

import torch
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


def found(scores, probe):
    right = probe["words"][probe["right"]]
    return {
        "recall": float(scores[probe["words"]].argmax() == probe["right"]),
        "greedy": float(scores.argmax() == right),
    }


def figures(model, task, told):
    context, base = told["context"], DynamicCache()
    model(torch.tensor([context[:-AGAIN]]), past_key_values=base, logits_to_keep=1)
    late = squeeze(model, task, base, context[-AGAIN:])
    rows = {
        name: {"bytes": sum(la.keys.nbytes + la.values.nbytes for la in c.layers), "entries": c.get_seq_length(),
               "recall": 0.0, "greedy": 0.0, "recall_late": 0.0, "greedy_late": 0.0}
        for name, c in late.items()
    }  # fmt: skip
    for probe in told["probes"]:
        prompt = context + probe["question"]
        for name, cache in squeeze(model, task, base, prompt[-AGAIN - len(probe["question"]) :]).items():
            for k, v in found(logits(model, cache, probe["stem"], len(prompt))[-1], probe).items():
                rows[name][k] += v / len(told["probes"])
        for name, cache in late.items():
            scores = logits(model, cache, probe["question"] + probe["stem"], len(context))[-1]
            for k, v in found(scores, probe).items():
                rows[name][k + "_late"] += v / len(told["probes"])
    after = torch.tensor(told["after"])
    for name, cache in late.items():
        scores = logits(model, cache, told["after"], len(context))[:-1]
        rows[name]["nll_after"] = float(torch.nn.functional.cross_entropy(scores, after[1:]))
    return rows


@torch.inference_mode()
def main():
    task = json.load(sys.stdin)
    model = AutoModelForCausalLM.from_pretrained(task["model"], dtype=torch.float32).eval()
    every = {}
    for told in task["contexts"]:
        for name, row in figures(model, task, told).items():
            every.setdefault(name, []).append(row)
    print(json.dumps(every))


main()
