"""Cases of parametrised tests that take seconds each, beside quick ones of the same test: they run with the slow tests.

A case is a test's place, or its beginning: `file::test[` is all cases but those in KEPT.
"""

SLOW = (
    "test_attacks_strong.py::test_a_search_in_bf16_claims_nothing_that_is_not_so[square-0.04]",
    "test_attacks_strong.py::test_smallest_epsilon_with_other_attacks[apgd-margin]",
    "test_attacks_strong.py::test_smallest_epsilon_with_other_attacks[fab]",
    "test_attacks_strong.py::test_worst_case_is_at_most_a_point_above_the_others_taken_together[3]",
    "test_cam.py::test_grad_cam_agrees_with_the_package[VGG16]",
    "test_catalogue.py::test_a_toy_of_each_kind_is_found_everywhere[report]",
    "test_door.py::test_each_liar_is_flagged_for_what_it_does[random resizing-checks5]",
    "test_door.py::test_the_declaration_of_a_random_model_is_judged_by_the_mean_of_its_draws",
    "test_folding.py::test_each_of_the_21_with_batchnorm_answers_as_before[",
    "test_layers.py::test_a_run_is_rebuilt_with_its_options[options5]",
    "test_lung_gate.py::test_the_gate_finds_the_lungs_of_films_that_it_was_not_trained_on[standard]",
    "test_recipes.py::test_a_shipped_recipe_loads_and_names_what_exists[paper]",
    "test_recipes.py::test_a_shipped_recipe_loads_and_names_what_exists[twenty-one]",
    "test_scores.py::test_the_table_is_written_a_batch_at_a_time",
    "test_training.py::test_a_run_that_was_cut_off_ends_as_if_it_had_not_been[",
    "test_training_backgrounds.py::test_a_run_that_was_cut_off_ends_as_if_it_had_not_been[",
    "test_training_defences.py::test_a_run_that_was_cut_off_ends_as_if_it_had_not_been[",
)
KEPT = (
    "[ResNet50]",
    "[DenseNet121]",
    "[MobileNetV2]",
    "[fgsm with a ramp]",
    "[emptied and penalty]",
    "[fgsm-0.9]",
)


def is_slow(place: str) -> bool:
    """Whether a test, by its place below tests/, is one of SLOW."""
    of_many = any(case.endswith("[") and place.startswith(case) for case in SLOW)
    return place in SLOW or (of_many and not place.endswith(KEPT))
