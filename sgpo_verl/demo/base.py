"""Train the demo's base model from scratch: a Llama of 0.6M parameters on demonstrations that are partly wrong.

    python -m sgpo_verl.demo.base DIRECTORY [--seed 0] [--steps 700]

Everything is drawn from the seed and the number of steps is fixed, so the same machine gives the same model again.
"""

import argparse
import math
import random
import time
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from sgpo_verl.demo import task

PAD, EOS = "<pad>", "<eos>"
VOCABULARY = {token: i for i, token in enumerate([PAD, EOS, *"0123456789="])}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}{% endfor %}{% if add_generation_prompt %}={% endif %}"
)
STEPS = 700
LENGTHS_PER_STEP, ROWS_PER_LENGTH = 4, 32  # one forward pass per length: no padding
PEAK_RATE = 2e-3
IGNORED = -100  # the label that transformers' loss leaves out


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token per character; a chat is its contents and then "=", the sign to answer."""
    tokenizer = Tokenizer(models.WordLevel(VOCABULARY, unk_token=PAD))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, eos_token=EOS, chat_template=CHAT_TEMPLATE, padding_side="left"
    )


def make_model(seed: int) -> LlamaForCausalLM:
    """The untrained model. Positions turn fast (theta 100), because what matters is which digit is n places back."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
        eos_token_id=VOCABULARY[EOS],
        pad_token_id=VOCABULARY[PAD],
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def batch(rng: random.Random, length: int, rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and labels, both (rows, 2 length + 3), of demonstrations of one length; the prompt has no labels."""
    texts = ["{}={}".format(*task.demonstration(rng, length)) for _ in range(rows)]
    ids = torch.tensor([[VOCABULARY[c] for c in text] + [VOCABULARY[EOS]] for text in texts])
    labels = ids.clone()
    labels[:, : length + 1] = IGNORED
    return ids, labels


def train(seed: int, steps: int) -> LlamaForCausalLM:
    """The trained base model; prints a line every 25 steps. Cosine rate after 50 steps of warm-up."""
    model, rng = make_model(seed), random.Random(f"base {seed}")
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.98))
    start = time.time()
    for step in range(1, steps + 1):
        decay = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * step / steps))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_RATE * min(1.0, step / 50) * decay
        optimizer.zero_grad()
        total = 0.0
        for length in rng.sample(range(1, task.MAX_LENGTH + 1), LENGTHS_PER_STEP):
            ids, labels = batch(rng, length, ROWS_PER_LENGTH)
            loss = model(input_ids=ids, labels=labels).loss / LENGTHS_PER_STEP
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0 or step == steps:
            print(f"step {step}/{steps} loss {total:.3f} seconds {time.time() - start:.1f}", flush=True)
    return model


def main(arguments: list[str] | None = None) -> None:
    """Train and save model and tokenizer into the directory that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(2)
    model = train(options.seed, options.steps)
    model.save_pretrained(options.directory)
    make_tokenizer().save_pretrained(options.directory)


if __name__ == "__main__":
    main()
