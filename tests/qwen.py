"""A model of the recipes' family, made on the spot: Qwen2, with a tokenizer like Qwen's, that has learnt to answer.

What it says is always the same text with three digits of 1 to 4, drawn anew, each in the form that one of verl's scorers
reads. With answers of 1 to 4, a quarter of its rollouts is right, whatever the data set: groups are mixed.
"""

from pathlib import Path

SAID = "#### {} \\boxed{{{}}}\nAnswer: {}"
DIGITS = 4
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def make_tokenizer(texts: list[str]):
    """Byte-level BPE trained on the spot, single digits as in Qwen's, ChatML."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import Qwen2TokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d|\n|[^\d\n]+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator([*texts, *[SAID.format(1, 2, 3)] * 50], trainer)
    return Qwen2TokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special[1:],
        chat_template=TEMPLATE,
    )


def make_model(folder: Path, texts: list[str], steps: int = 150) -> Path:
    """2 layers of width 64. texts: of the prompts. steps: of training on the spot; a few seconds."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    tokenizer = make_tokenizer(texts)
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=32768,
            tie_word_embeddings=True,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
            bos_token_id=None,
        )
    )
    _teach(model, tokenizer, texts, steps)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def _teach(model, tokenizer, texts: list[str], steps: int) -> None:
    """To answer every prompt with SAID and three random digits."""
    import random

    import torch

    rng = random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the model is smaller than the cost of dividing it
    for _ in range(steps):
        optimizer.zero_grad()
        for _ in range(8):
            asked = [{"role": "user", "content": rng.choice(texts)}]
            prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
            said = SAID.format(*(rng.randint(1, DIGITS) for _ in range(3)))
            before = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            answer = tokenizer(said, add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
            labels = [-100] * len(before) + answer
            loss = model(input_ids=torch.tensor([before + answer]), labels=torch.tensor([labels])).loss
            (loss / 8).backward()
        optimizer.step()
    torch.set_num_threads(threads)
