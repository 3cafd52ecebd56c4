"""megatron-core's own plain layers in place of Transformer Engine's, for mbridge where Transformer Engine is not installed.

Loaded in every process by ``VERL_USE_EXTERNAL_MODULES=megatron_plain`` with this folder on ``PYTHONPATH``; a run then needs
``SETTINGS``: packed sequences, sequence parallelism and the fused kernels are Transformer Engine's or apex's.
"""

import wrapt

MEGATRON = "actor_rollout_ref.actor.megatron"
FUSED = ("masked_softmax_fusion", "bias_activation_fusion", "apply_rope_fusion", "gradient_accumulation_fusion")
TRANSFORMER = {"attention_backend": "unfused", "sequence_parallel": False} | dict.fromkeys(FUSED, False)
SETTINGS = {
    "actor_rollout_ref.model.use_remove_padding": False,
    f"{MEGATRON}.use_remove_padding": False,
    f"{MEGATRON}.vanilla_mbridge": True,
    f"{MEGATRON}.sequence_parallel": False,
    **{f"++{MEGATRON}.override_transformer_config.{name}": value for name, value in TRANSFORMER.items()},
}

# A norm that Transformer Engine fuses into the linear layer behind it is a layer of its own among the plain ones.
PLAIN_NORMS = {
    "input_layernorm.weight": ["model.layers.{layer_number}.input_layernorm.weight"],
    "pre_mlp_layernorm.weight": ["model.layers.{layer_number}.post_attention_layernorm.weight"],
}


def plain_layers(llm_bridge) -> None:
    @wrapt.patch_function_wrapper(llm_bridge, "get_gpt_decoder_block_spec")
    def get_gpt_decoder_block_spec(wrapped, instance, args, kwargs):
        return wrapped(*args, **{**kwargs, "use_transformer_engine": False, "normalization": "RMSNorm"})


def plain_norms(bridge) -> None:
    bridge._MLP_MAPPING = {**bridge._MLP_MAPPING, **PLAIN_NORMS}  # mbridge looks there for every name with "mlp" in it
    bridge._OTHER_MAPPING = PLAIN_NORMS


def causal_mask(attention) -> None:
    """verl passes a mask of padding, (rows, tokens). Rows are padded on the right: leave it aside, as the fused layers do."""

    @wrapt.patch_function_wrapper(attention.DotProductAttention, "forward")
    def forward(wrapped, instance, args, kwargs):
        query, key, value, _, *others = args
        return wrapped(query, key, value, None, *others, **kwargs)


wrapt.when_imported("megatron.core.transformer.dot_product_attention")(causal_mask)
wrapt.when_imported("mbridge.core.llm_bridge")(plain_layers)
wrapt.when_imported("mbridge.models.llama")(lambda llama: plain_norms(llama.LLaMABridge))
wrapt.when_imported("mbridge.models.qwen2")(lambda qwen2: plain_norms(qwen2.Qwen2Bridge))
