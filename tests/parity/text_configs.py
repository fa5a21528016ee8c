"""The text_encoder/config.json of Stable Diffusion 2.x and 1.x, as the folders have them."""

TEXT_2 = {
    "_name_or_path": "stabilityai/stable-diffusion-2",
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 512,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
    "vocab_size": 49408,
}
TEXT_1 = {
    **TEXT_2,
    "hidden_act": "quick_gelu",
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_attention_heads": 12,
    "num_hidden_layers": 12,
    "projection_dim": 768,
}
# What a file of their weights holds, by transformers itself: see tests/parity/test_text.py.
SIZES = {"2.x": (TEXT_2, 340_387_840), "1.x": (TEXT_1, 123_060_480)}
