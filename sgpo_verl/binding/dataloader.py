"""The curriculum dataloader: what verl's trainer knows as ``train_dataloader``.

verl saves and restores its dataloader's state inside every checkpoint (``data.pt``), before it marks the checkpoint as
the latest. The method's state and the running totals live in that state, so they can never be older than the weights.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from torch.utils.data import Dataset
from verl.utils.dataset.rl_dataset import RLHFDataset, collate_fn

from sgpo_verl import __version__
from sgpo_verl.checks.data import TRAIN, check_names, check_row
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Groups, Method
from sgpo_verl.metrics import Ledger
from sgpo_verl.posterior import Posterior
from sgpo_verl.prompts import Prompts, identify, identify_indexed

PROMPT = "sgpo_prompt"  # batch field that carries a prompt's position in the plan to its outcome
ROLLOUT_N = "__rollout_n__"  # batch field in which verl's agent loop reads the number of rollouts of a prompt
ROWS_AT_ONCE = 10_000


def identify_dataset(dataset: Dataset, duplicates: str) -> Prompts:
    """Identities of a verl dataset's rows. Text columns are read at once; other dataset classes row by row."""
    if len(dataset) == 0:
        return identify([], [], [], duplicates)
    if type(dataset).__getitem__ is RLHFDataset.__getitem__:
        frame = dataset.dataframe
        names = frame.column_names
        check_names(TRAIN, dataset.prompt_key, names)
        if (prompts := _identify_columns(frame, dataset.prompt_key)) is not None:
            return prompts
        extra = frame["extra_info"] if "extra_info" in names else [None] * len(frame)
        truth = frame["reward_model"] if "reward_model" in names else [None] * len(frame)
        rows: Iterable[tuple[Any, Any, Any, Any]] = zip(
            frame["data_source"], extra, frame[dataset.prompt_key], truth, strict=True
        )
    else:
        items = (dataset[i] for i in range(len(dataset)))
        rows = ((r["data_source"], r.get("extra_info"), r["raw_prompt"], r.get("reward_model")) for r in items)
    sources, indices, contents = [], [], []
    for row, (source, extra_info, messages, reward_model) in enumerate(rows):
        check_row(TRAIN, row, source, extra_info, messages, reward_model)
        sources.append(source)
        indices.append((extra_info or {}).get("index"))
        contents.append([messages, (reward_model or {}).get("ground_truth")])
    return identify(sources, indices, contents, duplicates)


def _identify_columns(frame: datasets.Dataset, prompt_key: str) -> Prompts | None:
    """Identities from whole columns, if these are as they should be and every row has an integer index of its own."""
    schema = frame.features.arrow_schema
    source, messages = schema.field("data_source").type, schema.field(prompt_key).type
    extra = schema.field("extra_info").type if "extra_info" in schema.names else pa.null()
    if not pa.types.is_struct(extra) or extra.get_field_index("index") < 0:
        return None
    index = extra.field("index").type
    texts = pa.types.is_string(source) or pa.types.is_large_string(source)  # the latter is what pandas writes
    numbers = pa.types.is_integer(index) and not pa.types.is_uint64(index)
    chats = pa.types.is_list(messages) and pa.types.is_struct(messages.value_type)
    truth = "reward_model" not in schema.names or pa.types.is_struct(schema.field("reward_model").type)
    # Of a filtered data set, the column holds the rows that are left out too: no harm, row by row is slower only.
    if not (texts and numbers and chats and truth) or frame.data.column(prompt_key).null_count:
        return None  # row by row, for the error that names the row
    # In parts, compacted: of a filtered data set, datasets hands out chunks of one row, hundreds of bytes each.
    parts = frame.select_columns(["data_source", "extra_info"]).with_format("arrow").iter(ROWS_AT_ONCE)
    columns = [
        (part["data_source"].combine_chunks(), pc.struct_field(part["extra_info"], "index").combine_chunks())
        for part in parts
    ]
    sources, indices = (pa.chunked_array(chunks) for chunks in zip(*columns, strict=True))
    if indices.null_count or sources.null_count:
        return None
    return identify_indexed(sources, indices.to_numpy().astype(np.int64))


class CurriculumDataLoader:
    """Rows of the groups that the method chooses, one batch per call; and the state that a checkpoint must hold.

    dataset: verl's. prompts: identities of its rows, by position in the plan. method: decides. ledger: running totals of
    the run's cost. posterior: what is believed of the prompts, if anything.
    """

    def __init__(
        self, dataset: Dataset, prompts: Prompts, method: Method, ledger: Ledger, posterior: Posterior | None = None
    ):
        self.dataset, self.prompts, self.method = dataset, prompts, method
        self.parts: dict[str, Any] = {"method": method, "ledger": ledger}
        if posterior is not None:
            self.parts["posterior"] = posterior

    def next_batch(self, rollouts: int) -> dict[str, Any]:
        """verl's batch dict for groups of exactly ``rollouts`` rollouts in all: one row per group, sizes in ROLLOUT_N."""
        return self._rows(self.method.next_groups(rollouts))

    def more(self, sizes: Sequence[int]) -> dict[str, Any]:
        """The same, for groups of exactly these sizes."""
        return self._rows(self.method.more_groups(sizes))

    def _rows(self, groups: Groups) -> dict[str, Any]:
        batch = collate_fn([self.dataset[int(self.prompts.rows_P[position])] for position, _ in groups])
        batch["uid"] = np.array([str(uuid.uuid4()) for _ in groups], dtype=object)
        batch[PROMPT] = np.array([position for position, _ in groups], dtype=object)
        batch[ROLLOUT_N] = np.array([n for _, n in groups], dtype=object)
        return batch

    def state_dict(self) -> dict[str, Any]:
        return {
            "sgpo_verl": __version__,
            **{name: part.state_dict() for name, part in self.parts.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if not isinstance(state, Mapping) or "sgpo_verl" not in state:
            raise SgpoError(
                "checkpoint: written by stock verl, without +sgpo; start from its weights in a new run "
                "(actor_rollout_ref.model.path), or resume it without +sgpo"
            )
        if missing := [name for name in self.parts if name not in state]:
            raise SgpoError(
                f"checkpoint: lacks {', '.join(missing)} in its dataloader state: start a new run from its weights"
            )
        if state["sgpo_verl"] != __version__:
            raise SgpoError(
                f"checkpoint: written by sgpo-verl {state['sgpo_verl']}, this is {__version__}: install that version to "
                "resume it, or start a new run from its weights"
            )
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
