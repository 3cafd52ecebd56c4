"""Write a task's data and train its base model from scratch: a Llama of 0.6M parameters, or a larger one.

    python -m sgpo_verl.demo.base DIRECTORY [--task double] [--model 0.6M] [--seed 0] [--steps 600]

Everything is drawn from the seed and the number of steps is fixed, so the same machine gives the same model again.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sgpo_verl.demo.pool import Task
from sgpo_verl.demo.task import DOUBLE
from sgpo_verl.demo.tasks import SIZES, TASKS

PAD, EOS = "<pad>", "<eos>"
VOCABULARY = {token: i for i, token in enumerate([PAD, EOS, *"0123456789="])}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
)
STEPS = 600
LENGTHS_PER_STEP, ROWS_PER_LENGTH = 4, 32  # one forward pass per length: no padding
IGNORED = -100  # the label that transformers' loss leaves out


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; a chat is its contents and then "=", the sign to answer."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, chat_template=CHAT_TEMPLATE, padding_side="left"
    )


def make_model(seed: int, size: str = "0.6M") -> LlamaForCausalLM:
    """The untrained model. Positions turn fast (theta 100), because what matters is which digit is n places back.

    It has as many ids as the tokenizer: verl masks others when it samples, not when it trains, and every answer that is made
    less likely would make them more so, unseen.
    """
    torch.manual_seed(seed)
    shape = SIZES[size]
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        eos_token_id=VOCABULARY[EOS],
        pad_token_id=VOCABULARY[PAD],
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def encode(pairs: list[tuple[str, str]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (rows, 2 length + 3), of numbers of one length and their answers; prompts: no labels."""
    length = len(pairs[0][0])
    ids = torch.tensor([[VOCABULARY[c] for c in f"{number}={text}"] + [VOCABULARY[EOS]] for number, text in pairs])
    labels = ids.clone()
    labels[:, : length + 1] = IGNORED
    return ids, labels


def train(seed: int, steps: int, task: Task = DOUBLE, size: str = "0.6M") -> LlamaForCausalLM:
    """The trained base model, on the CPU; prints a line every 25 steps. Cosine rate after 50 steps of warm-up.

    A model of 0.6M is trained on the CPU, where its numbers are those of the documentation; larger ones on a GPU if there is.
    """
    device = "cuda" if size != "0.6M" and torch.cuda.is_available() else "cpu"
    model, rng = make_model(seed, size).to(device), random.Random(f"base {seed}")
    peak_rate = SIZES[size].peak_rate
    optimizer = torch.optim.AdamW(model.parameters(), lr=peak_rate, betas=(0.9, 0.98))
    start = time.time()
    for step in range(1, steps + 1):
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = peak_rate * min(1.0, step / 50) * decay
        optimizer.zero_grad()
        total = 0.0
        for length in rng.sample(range(1, task.max_length + 1), LENGTHS_PER_STEP):
            rows = encode([task.demonstration(rng, length) for _ in range(ROWS_PER_LENGTH)])
            ids, labels = (part.to(device) for part in rows)
            loss = model(input_ids=ids, labels=labels).loss / LENGTHS_PER_STEP
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == steps:
            print(f"step {step}/{steps} loss {total:.3f} seconds {time.time() - start:.1f}", flush=True)
    return model.to("cpu")


@torch.no_grad()
def pass_rates(model: LlamaForCausalLM, numbers: int = 100, task: Task = DOUBLE) -> list[float]:
    """For 1, 2, ... digits: the mean probability of the right answer when sampling at temperature 1. No sampling done."""
    rng, rates = random.Random("pass rates"), []
    for length in range(1, task.max_length + 1):
        drawn = [task.draw(rng, length) for _ in range(numbers)]
        ids, labels = encode([(number, task.answer(number)) for number in drawn])
        log_probs = torch.log_softmax(model(input_ids=ids).logits[:, length:-1], dim=-1)
        answers = labels[:, length + 1 :, None]
        rates.append(log_probs.gather(-1, answers)[..., 0].sum(dim=-1).exp().mean().item())
    return rates


def main(arguments: list[str] | None = None) -> None:
    """Write data/ and base/ (model and tokenizer) into the directory that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--task", choices=TASKS, default="double")
    parser.add_argument("--model", choices=SIZES, default="0.6M")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--prompts", type=int, help="in the training pool")
    parser.add_argument("--validation", type=int, help="held-out prompts")
    options = parser.parse_args(arguments)
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)  # steady on a busy machine, where two would wait for each other
    task = TASKS[options.task]
    task.write(options.directory / "data", options.seed, options.prompts, options.validation)
    model = train(options.seed, options.steps, task, options.model)
    model.save_pretrained(options.directory / "base")
    make_tokenizer().save_pretrained(options.directory / "base")
    rates = " ".join(f"{rate:.2f}" for rate in pass_rates(model, task=task))
    print(f"right answers, 1 to {task.max_length} digits: {rates}")


if __name__ == "__main__":
    main()
