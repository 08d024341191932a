"""What the coverage page is made of: one row an architecture, by library.

A row is small in weights and input size, but keeps what makes its family different.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.zoo.families import FAMILIES


@dataclass(frozen=True)
class Row:
    """One architecture to pack.

    Attributes:
        library: `timm`, `torchvision` or `transformers`.
        family: What it stands for.
        architecture: Its name in the library; a class for transformers.
        inputs: As for `--input`.
        args: `--model-args`; for transformers the values of `config.json`, `model_type` among them.
    """

    library: str
    family: str
    architecture: str
    inputs: tuple[str, ...]
    args: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """Its name in the file of results."""
        return f"{self.library}/{self.architecture}"


def _image(size: int, name: str = "x") -> tuple[str, ...]:
    return (f"{name}:float32[batch,3,{size},{size}]",)


# Families whose smallest network takes minutes a run: the same blocks, fewer of them.
_FEWER_BLOCKS = {name: {"depth": 2} for name in ("gemma4_vit_167m", "deepseek_vit_412m", "qwen3_vit_88m")}


def _timm() -> list[Row]:
    return [
        Row("timm", family, name, (f"x:float32[batch,{','.join(map(str, shape))}]",), _FEWER_BLOCKS.get(name, {}))
        for family, (name, shape) in FAMILIES.items()
    ]


def _torchvision() -> list[Row]:
    names: list[tuple[str, str, int, dict[str, Any]]] = [
        ("AlexNet", "alexnet", 64, {}),
        ("VGG", "vgg11", 64, {}),
        ("ResNet", "resnet18", 64, {}),
        ("ResNeXt", "resnext50_32x4d", 64, {}),
        ("SqueezeNet", "squeezenet1_1", 64, {}),
        ("DenseNet", "densenet121", 64, {}),
        ("GoogLeNet", "googlenet", 64, {"aux_logits": False}),
        ("Inception v3", "inception_v3", 96, {"aux_logits": False}),
        ("ShuffleNet v2", "shufflenet_v2_x0_5", 64, {}),
        ("MobileNet v2", "mobilenet_v2", 64, {}),
        ("MobileNet v3", "mobilenet_v3_small", 64, {}),
        ("MNASNet", "mnasnet0_5", 64, {}),
        ("RegNet", "regnet_y_400mf", 64, {}),
        ("EfficientNet", "efficientnet_b0", 64, {}),
        ("ConvNeXt", "convnext_tiny", 64, {}),
        ("Vision Transformer", "vit_b_32", 224, {}),
        ("Swin", "swin_t", 224, {}),
        ("Swin v2", "swin_v2_t", 256, {}),
        ("MaxViT", "maxvit_t", 224, {}),
        ("FCN", "fcn_resnet50", 64, {}),
        ("DeepLab v3", "deeplabv3_mobilenet_v3_large", 64, {}),
        ("LR-ASPP", "lraspp_mobilenet_v3_large", 64, {}),
    ]
    rows = [Row("torchvision", family, name, _image(size), args) for family, name, size, args in names]
    rows.append(Row("torchvision", "video ResNet", "r3d_18", ("x:float32[batch,3,8,32,32]",)))
    return rows


_IDS = ("input_ids:int64[batch,seq]",)
_TEXT = (*_IDS, "attention_mask:int64[batch,seq]")
_BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 99}
_LLAMA = {**_BERT, "num_key_value_heads": 2, "max_position_embeddings": 128}
_VIT = {**_BERT, "image_size": 32, "patch_size": 8}
_ENDS = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2, "decoder_start_token_id": 0}
_TOKENS = {"vocab_size": 99, "bos_token_id": 0, "eos_token_id": 1}


def _transformers() -> list[Row]:
    shapes: list[tuple[str, str, str, tuple[str, ...], dict[str, Any]]] = [
        ("BERT", "BertModel", "bert", _TEXT, _BERT),
        ("RoBERTa", "RobertaForSequenceClassification", "roberta", _TEXT, _BERT),
        ("ALBERT", "AlbertForMaskedLM", "albert", _TEXT, {**_BERT, "embedding_size": 16}),
        ("ELECTRA", "ElectraForTokenClassification", "electra", _TEXT, {**_BERT, "embedding_size": 16}),
        (
            "DistilBERT",
            "DistilBertForQuestionAnswering",
            "distilbert",
            _TEXT,
            {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "vocab_size": 99},
        ),
        (
            "DeBERTa v2 (relative position)",
            "DebertaV2ForSequenceClassification",
            "deberta-v2",
            _TEXT,
            {**_BERT, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
        ),
        ("GPT-2 (tied weights)", "GPT2LMHeadModel", "gpt2", _TEXT, {"n_embd": 32, "n_layer": 2, "n_head": 4} | _TOKENS),
        ("Llama (rotary, grouped queries)", "LlamaForCausalLM", "llama", _TEXT, _LLAMA),
        ("Mistral (sliding window)", "MistralForCausalLM", "mistral", _TEXT, {**_LLAMA, "sliding_window": 8}),
        ("Qwen2 (tied weights)", "Qwen2ForCausalLM", "qwen2", _TEXT, {**_LLAMA, "tie_word_embeddings": True}),
        (
            "T5 encoder (relative position)",
            "T5EncoderModel",
            "t5",
            _TEXT,
            {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
        ),
        ("ViT", "ViTForImageClassification", "vit", _image(32, "pixel_values"), _VIT),
        ("CLIP vision", "CLIPVisionModel", "clip_vision_model", _image(32, "pixel_values"), _VIT),
        (
            "ConvNeXt v2",
            "ConvNextV2ForImageClassification",
            "convnextv2",
            _image(64, "pixel_values"),
            {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1]},
        ),
        (
            "SegFormer",
            "SegformerForSemanticSegmentation",
            "segformer",
            _image(64, "pixel_values"),
            {"hidden_sizes": [8, 16, 32, 64], "depths": [1, 1, 1, 1], "decoder_hidden_size": 16},
        ),
        (
            "Whisper encoder",
            "WhisperForAudioClassification",
            "whisper",
            ("input_features:float32[batch,16,40]",),
            {
                "d_model": 32,
                "encoder_layers": 2,
                "decoder_layers": 1,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
                "num_mel_bins": 16,
                "max_source_positions": 20,
                "classifier_proj_size": 16,
                "vocab_size": 99,
            }
            | _ENDS,
        ),
        (
            "wav2vec 2.0",
            "Wav2Vec2ForCTC",
            "wav2vec2",
            ("input_values:float32[batch,samples]",),
            {
                **_BERT,
                "vocab_size": 16,
                "conv_dim": [16, 16, 16],
                "conv_stride": [5, 2, 2],
                "conv_kernel": [10, 3, 3],
                "num_feat_extract_layers": 3,
                "num_conv_pos_embeddings": 16,
                "num_conv_pos_embedding_groups": 4,
            },
        ),
    ]
    return [
        Row("transformers", family, name, inputs, {"model_type": kind, "architectures": [name], **values})
        for family, name, kind, inputs, values in shapes
    ]


ROWS: dict[str, Row] = {row.key: row for row in (*_timm(), *_torchvision(), *_transformers())}
