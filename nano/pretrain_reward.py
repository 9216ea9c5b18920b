"""Train the nano outcome reward model: `python -m nano.pretrain_reward CONFIG.json` (one process, one thread).

It reads (query, solution), never thoughts. The logit of the last token learns whether the solution is right. Two
auxiliary losses, whose heads are thrown away, make this learnable: each token up to the first wrong one is classified
as right or wrong, and the next right token is predicted. All problems are of the split `reward`.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from torch.nn import functional
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from infra.processes.devices import this_machine
from nano.config import PretrainConfig
from nano.corpus import chat, with_mistakes
from nano.pretrain import architecture, train
from nano.vocabulary import ASSISTANT, PAD, encoder

LAYERS = 6
Example = tuple[list[str], list[float], list[bool]]
# query, right solution, and other solutions with whether their answer is right
Labelled = tuple[str, str, list[tuple[str, bool]]]


def batches(rng: random.Random, samples: list[Labelled], budget: int, pool: int = 8) -> Iterator[list[Example]]:
    """Batches of about `budget` tokens, each of examples of similar length (little padding), in random order.

    Half of the problems are new ones with made-up mistakes. The other half is drawn from `samples`, if there are any.
    """
    while True:
        examples: list[Example] = []
        while sum(len(tokens) for tokens, _, _ in examples) < pool * budget:
            examples += labelled(*(rng.choice(samples) if samples and rng.random() < 0.5 else made_up(rng)))
        examples.sort(key=lambda example: len(example[0]))
        cuts: list[list[Example]] = [[]]
        for example in examples:
            if (len(cuts[-1]) + 1) * len(example[0]) > budget * 1.05:
                cuts.append([])
            cuts[-1].append(example)
        rng.shuffle(cuts)
        yield from cuts


def made_up(rng: random.Random) -> Labelled:
    """A new problem with made-up mistakes; a solution that is wrong anywhere counts as wrong."""
    problem, (right, *others) = with_mistakes(rng)
    return problem.query, right, [(other, other == right) for other in others]


def labelled(query: str, right_solution: str, others: list[tuple[str, bool]]) -> list[Example]:
    """One problem's solutions as (tokens, labels, masks), each with one item per token.

    Label: 1 for the tokens that agree with the right solution, 0 for the first that does not if the answer is wrong
    too, none (-1) after it. The label of the last token is whether the solution is right. Mask: whether the next token
    is to be predicted.
    """
    right = chat(query, right_solution).split()
    found = []
    for solution, is_right in [(right_solution, True), *others]:
        tokens = chat(query, solution).split()
        agree = next(
            (i for i, (a, b) in enumerate(zip(tokens, right, strict=False)) if a != b), min(len(tokens), len(right))
        )
        labels = [1.0] * agree + [-1.0 if is_right else 0.0] + [-1.0] * len(tokens)
        labels = [*labels[: len(tokens) - 1], float(is_right)]
        found.append((tokens, labels, [i < agree for i in range(len(tokens))]))
    return found


def read_samples(path: Path | None) -> list[Labelled]:
    """The instruct model's samples, one problem per JSON line; empty without a path."""
    if path is None:
        return []
    return [(row["query"], row["right"], [(s, c) for s, c in row["solutions"]]) for row in map(json.loads, path.open())]


def grown(start: Path) -> LlamaForSequenceClassification:
    """The initial model: the language model in `start` plus two layers and a score head.

    The new layers add nothing at first, since what they write to the residual stream starts at zero.
    """
    shape = architecture(layers=LAYERS)
    shape.num_labels = 1
    model = LlamaForSequenceClassification(shape)
    learned = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32).model
    model.model.load_state_dict(learned.state_dict(), strict=False)
    for layer in model.model.layers[learned.config.num_hidden_layers :]:
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return model


def main(config_path: str) -> None:
    """Train as the configuration says; write model, tokenizer and metrics."""
    config = PretrainConfig.model_validate_json(Path(config_path).read_text())
    torch.manual_seed(config.seed)
    torch.set_num_threads(1)
    ids = encoder()
    if config.start is None:
        raise ValueError(f"{config_path}: start must name the instruct model that the reward model grows from")
    model = grown(config.start)
    local = torch.nn.Linear(model.config.hidden_size, 1)
    stream = batches(random.Random(config.seed), read_samples(config.samples), config.row_tokens * config.rows_per_step)

    def measure() -> tuple[torch.Tensor, dict[str, float]]:
        batch = next(stream)
        width = max(len(tokens) for tokens, _, _ in batch)
        tokens_BT = torch.full((len(batch), width), ids[PAD])
        marks_BT = torch.full((len(batch), width), -1.0)
        learn_BT = torch.zeros((len(batch), width), dtype=torch.bool)
        last_B = torch.tensor([len(tokens) - 1 for tokens, _, _ in batch])
        for b, (tokens, marks, learn) in enumerate(batch):
            start = tokens.index(ASSISTANT) + 1
            tokens_BT[b, : len(tokens)] = torch.tensor([ids[t] for t in tokens])
            marks_BT[b, start : len(tokens)] = torch.tensor(marks[start:])
            learn_BT[b, start : len(tokens)] = torch.tensor(learn[start:])
        rows = torch.arange(len(batch))
        right_B = marks_BT[rows, last_B]
        marks_BT[rows, last_B] = -1.0
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=this_machine().bf16):
            hidden_BTD = model.model(input_ids=tokens_BT).last_hidden_state
            score_B = model.score(hidden_BTD[rows, last_B]).squeeze(-1).float()
            local_BT = local(hidden_BTD).squeeze(-1).float()
            logits_BTV = functional.linear(hidden_BTD[:, :-1], model.model.embed_tokens.weight)
        labelled_BT = marks_BT >= 0
        weight = 1.0 + 7.0 * (1.0 - marks_BT[labelled_BT])  # there is one wrong token for many right ones
        where = functional.binary_cross_entropy_with_logits(local_BT[labelled_BT], marks_BT[labelled_BT], weight)
        outcome = functional.binary_cross_entropy_with_logits(score_B, right_B)
        nexts = functional.cross_entropy(logits_BTV[learn_BT[:, 1:]].float(), tokens_BT[:, 1:][learn_BT[:, 1:]])
        accuracy = ((score_B > 0).float() == right_B).float().mean()
        figures = {"where": where, "outcome": outcome, "next": nexts, "accuracy": accuracy}
        return where + outcome + 0.5 * nexts, {name: figure.item() for name, figure in figures.items()}

    train(config, model, torch.nn.ModuleDict({"model": model, "score_local": local}), measure)


if __name__ == "__main__":
    main(sys.argv[1])
