"""A training run's plan, from its configuration and data: profile (made on the spot if none is given), plan, method."""

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

from sgpo_verl.binding.dataloader import CurriculumDataLoader, identify_dataset
from sgpo_verl.binding.profiler import Target, make_profile
from sgpo_verl.binding.sources import load_hf_config
from sgpo_verl.checks.profile import mismatch
from sgpo_verl.config import Settings
from sgpo_verl.cost import ModelShape, shape_from_config
from sgpo_verl.errors import SgpoError
from sgpo_verl.methods.base import Method, Outcome
from sgpo_verl.metrics import Ledger
from sgpo_verl.plan import Plan, make_plan, plan_without_profile
from sgpo_verl.posterior import Posterior
from sgpo_verl.profile import Profile, ProfileMetadata, differences, load_profile
from sgpo_verl.prompts import Prompts
from sgpo_verl.provenance import describe
from sgpo_verl.run_config import as_dicts, check_supported, numbers_of, own_profile_path, settings_of
from sgpo_verl.selection import Sampled, Selection, select
from sgpo_verl.tally import plain_lines

logger = logging.getLogger("sgpo_verl")


@dataclass(frozen=True)
class Session:
    """What the trainer asks: for as long as it trains, so no profile is kept."""

    settings: Settings
    plan: Plan
    method: Method
    posterior: Posterior | None
    dataloader: CurriculumDataLoader
    ledger: Ledger
    shape: ModelShape

    @classmethod
    def start(cls, config: DictConfig, dataset: Dataset, tokenizer: PreTrainedTokenizerBase) -> "Session":
        """Everything up to the first step. Raises SgpoError before any model is loaded if something does not fit."""
        plain = as_dicts(config)
        check_supported(plain)
        settings, numbers = settings_of(plain), numbers_of(plain)
        prompts = identify_dataset(dataset, settings.duplicates)
        wanted = metadata_for(plain, settings, tokenizer)
        shape, ledger = model_shape(config), Ledger()
        if settings.needs_profile or settings.profile.path:
            made, path = _profile_for(config, dataset, prompts, tokenizer, settings, wanted)
            plan = make_plan(made.align(prompts.keys_P, str(path), prompts.index_P), settings, numbers).plan
            ledger = Ledger.after_profile(shape, made)
        else:
            plan = plan_without_profile(prompts.keys_P, settings, numbers)
        method, posterior = plan.start()
        phases = [(p.group_size, len(p.prompts_M), s) for p, s in zip(plan.phases, plan.steps, strict=True)]
        print(f"sgpo: {plan.total_steps} steps; phases (group size, prompts, steps): {phases}", flush=True)
        dataloader = CurriculumDataLoader(dataset, prompts, method, ledger, posterior)
        return cls(settings, plan, method, posterior, dataloader, ledger, shape)

    def select(self, sampled: Sampled, normalize_by_std: bool) -> Selection:
        """Advantages of a step's rollouts, and which are trained on; before ``believe`` is told what came of them."""
        if self.posterior is not None:
            a_N, b_N = self.posterior.believed(sampled.prompt_N)
            sampled = replace(sampled, a_N=a_N, b_N=b_N)
        return select(sampled, self.settings, [self.settings.seed, 1, self.ledger.rollouts_generated], normalize_by_std)

    def believe(self, outcomes: Sequence[Outcome]) -> None:
        """Let beliefs follow what was seen; the method itself is told at the end of the step."""
        if self.posterior is not None:
            self.posterior.observe(outcomes)

    def metrics(self) -> dict[str, float]:
        believed = self.posterior.metrics() if self.posterior is not None else {}
        return self.method.metrics() | believed | self.ledger.metrics()


def metadata_for(plain: dict[str, Any], settings: Settings, tokenizer: PreTrainedTokenizerBase) -> ProfileMetadata:
    """What a profile for this run must say of itself."""
    template = str(tokenizer.chat_template)
    return describe(plain, settings.success_threshold, settings.seed, template, _tokenizer_text(tokenizer))


def _tokenizer_text(tokenizer: PreTrainedTokenizerBase) -> str:
    """Everything that decides which token ids a text becomes."""
    if tokenizer.is_fast:
        return tokenizer.backend_tokenizer.to_str()
    return json.dumps([sorted(tokenizer.get_vocab().items()), tokenizer.special_tokens_map], default=str)


def model_shape(config: DictConfig) -> ModelShape:
    """Of actor_rollout_ref.model.path, wherever verl finds it."""
    return shape_from_config(load_hf_config(config).to_dict(), f"{config.actor_rollout_ref.model.path}/config.json")


def _profile_for(
    config: DictConfig,
    dataset: Dataset,
    prompts: Prompts,
    tokenizer: PreTrainedTokenizerBase,
    settings: Settings,
    wanted: ProfileMetadata,
) -> tuple[Profile, Path]:
    """(profile, its file): the profile at sgpo.profile.path; else the one of an earlier start of this run; else a new one."""
    own = own_profile_path(config)
    path = Path(settings.profile.path) if settings.profile.path else own
    if settings.profile.path or own.exists():
        profile = load_profile(path)
        check_match(profile.metadata, wanted, path, settings.profile.allow_mismatch)
        if not profile.has_lengths:
            logger.warning("sgpo: %s has no lengths, so its own cost is missing from sgpo/flops/*", path)
    else:
        target = Target(config, dataset, prompts, tokenizer, settings, wanted)
        profile = make_profile(target, path, settings.profile.n, None, plain_lines())
        print(f"sgpo: profile written to {path}", flush=True)
    return profile, path


def check_match(made: ProfileMetadata, wanted: ProfileMetadata, path: Path, allow: bool) -> None:
    """Refuse a profile of something else. Raises SgpoError naming every field that differs."""
    lines = differences(made, wanted)
    if unstated := made.unstated():
        logger.warning("sgpo: %s does not say its %s: it is taken to be of this run", path, ", ".join(unstated))
    if lines and not allow:
        raise SgpoError(mismatch(path, lines))
    if lines:
        logger.warning("sgpo: %s is of another run, used all the same: %s", path, "; ".join(lines))
