import math

import pytest

from ensexport.members.differences import ABSENT, Differing, differing, is_harmless

HARMLESS = """
seed args.seed random_seed hyper_parameters.data_seed fold init_args.fold fold_idx args.split_id epoch args.epochs
num_train_epochs max_steps start_epoch output_dir args.data_path args.log_file workdir args.name args.run_name
args.experiment date timestamp _name_or_path transformers_version pytorch-lightning_version torch_dtype dtype lr
args.min_lr learning_rate lr_scheduler args.sched warmup_steps args.warmup_lr weight_decay args.opt args.opt_eps
hyper_parameters.optimizer.eps batch_size args.device args.workers hidden_dropout_prob attention_probs_dropout_prob
drop_path_rate args.drop classifier_dropout layerdrop initializer_range use_cache _attn_implementation_autoset
git_hash _commit_hash args.resume attn_pdrop drop_connect_rate proj_drop args.adam_beta1 args.betas start_time
"""
SHAPING = """
width args.width args.model arch hyper_parameters.model.name model_type hidden_size layer_norm_eps hidden_act act.name
architectures.0 num_hidden_layers id2label.0 label2id.cat vocab_size norm_layer bn_eps num_classes image_size
output_attentions pad_token_id rope_theta time_embedding_type position_embedding_type kernel_size args.gp batch_norm
return_dict file_channels rate dilation dataset optimal_width droplet drop_final_norm beta num_steps iterations rank
split group_norm dist_type gelu_version version learn_time precision lrelu_slope seeded_noise
"""


@pytest.mark.parametrize("name", HARMLESS.split())
def test_options_of_the_run_are_harmless(name):
    assert is_harmless(name)


@pytest.mark.parametrize("name", SHAPING.split())
def test_options_of_the_network_and_unknown_ones_are_not(name):
    assert not is_harmless(name)


def test_only_what_differs_is_returned_in_two_groups():
    members = [{"a.seed": 1, "width": 64, "act": "relu"}, {"a.seed": 2, "width": 64, "act": "gelu"}]
    assert differing(members) == Differing(shaping={"act": ("relu", "gelu")}, harmless={"a.seed": (1, 2)})


def test_an_option_that_a_member_lacks_differs():
    assert differing([{}, {"width": None}]).shaping == {"width": (ABSENT, None)}


def test_few_members_do_not_differ():
    assert differing([]) == differing([{"a": 1}]) == Differing({}, {})


def test_equal_is_what_a_user_calls_equal():
    assert differing([{"a": math.nan, "b": 1}, {"a": float("nan"), "b": 1.0}]) == Differing({}, {})
    assert differing([{"a": True}, {"a": 1}]).shaping == {"a": (True, 1)}
    assert differing([{"a": "1"}, {"a": 1}]).shaping == {"a": ("1", 1)}
