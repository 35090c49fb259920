"""Inject, train, remove: promises 1 to 3 of the design."""

import copy
import io
import json
import pickle

import pytest
import torch
from transformers import AlbertConfig, AlbertModel, BertConfig, BertModel

from conftest import (
    CUT,
    DEPTH,
    assert_same_tensors,
    batch_for,
    build,
    cut_by_hand,
    drawn,
    gradients_of,
    keep_all_stacks,
    layers_of,
    loss_of,
    output_of,
)
from hf_layerdrop import (
    LayerDropConfig,
    evaluate_depths,
    inject_layerdrop,
    layerdrop_state,
    prune_layers,
    remove_layerdrop,
    set_rates,
    set_step,
    sub_network,
)
from hf_layerdrop.errors import LayerDropConfigError, LayerDropStateError, UnsupportedModelError


def traces(model):
    """Return all of a model that inject could change, other than the weights."""
    plain = (str, int, float, bool, type(None))

    def shown(value):
        return value if isinstance(value, plain) else len(value) if isinstance(value, dict) else "an object"

    modules = {
        name: (type(module), {key: shown(value) for key, value in vars(module).items()})
        for name, module in model.named_modules()
    }
    return modules, model.config.to_dict(), vars(model.config).keys()


# --- Promise 1: nothing of the model changes, and remove undoes it --------------------------------


def test_inject_changes_no_name_shape_dtype_or_value_of_a_weight(any_head):
    model = build(any_head).to(torch.bfloat16)
    parameters = {name: id(parameter) for name, parameter in model.named_parameters()}
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    class_names = [
        (name, type(m).__name__, type(m).__qualname__, type(m).__module__) for name, m in model.named_modules()
    ]
    inject_layerdrop(model, 1.0)
    assert_same_tensors(model.state_dict(), weights)
    assert {name: id(parameter) for name, parameter in model.named_parameters()} == parameters
    assert [
        (name, type(m).__name__, type(m).__qualname__, type(m).__module__) for name, m in model.named_modules()
    ] == class_names
    assert all(not runs for runs in drawn(model, batch_for(any_head))[0].values())
    assert_same_tensors(model.state_dict(), weights)


ROUTES = {
    "as it is": lambda model, folder: model,
    "saved": lambda model, folder: model.save_pretrained(folder) or model,
    "deepcopy": lambda model, folder: copy.deepcopy(model),
    "pickle": lambda model, folder: pickle.loads(pickle.dumps(model)),
    "trained": lambda model, folder: drawn(model, batch_for(type(model).__name__)) and model.eval(),
}


@pytest.mark.parametrize("route", ROUTES)
def test_remove_undoes_inject_exactly(head, route, tmp_path):
    native = {"encoder_layerdrop": 0.3, "decoder_layerdrop": 0.2} if head.startswith("Bart") else {}
    untouched = ROUTES[route](build(head, **native), tmp_path / "untouched")
    model = build(head, **native)
    inject_layerdrop(model, LayerDropConfig(0.9, seed=3))
    assert traces(model) != traces(build(head, **native))
    model = ROUTES[route](model, tmp_path / "injected")
    assert layerdrop_state(model).rates == {name: [0.9] * DEPTH for name in layers_of(model)}
    remove_layerdrop(model)
    assert traces(model) == traces(untouched)
    assert_same_tensors(model.state_dict(), untouched.state_dict())
    with pytest.raises(LayerDropStateError):
        layerdrop_state(model)
    if not native:
        assert torch.equal(output_of(model.train(), batch_for(head)), output_of(untouched.train(), batch_for(head)))


def test_copies_go_on_alone(head):
    model, batch = build(head), batch_for(head)
    inject_layerdrop(model, LayerDropConfig(0.5, seed=3))
    torch.save(model, file := io.BytesIO())
    file.seek(0)
    copies = copy.deepcopy(model), pickle.loads(pickle.dumps(model)), torch.load(file, weights_only=False)
    expected = drawn(model, batch, 6)
    set_rates(model, 1.0)
    assert all(drawn(copied, batch, 6) == expected for copied in copies)
    assert drawn(model, batch) != expected[:1]


def test_two_models_built_from_one_config_object_each_keep_and_save_their_own_rates(head, tmp_path):
    first = build(head)
    second = type(first)._from_config(first.config, attn_implementation="eager")
    assert second.config is first.config
    inject_layerdrop(first, LayerDropConfig(0.1, seed=1))
    inject_layerdrop(second, LayerDropConfig(0.5, seed=2))
    set_rates(first, 0.2)
    for model, rate, seed in ((first, 0.2, 1), (second, 0.5, 2)):
        model.save_pretrained(tmp_path / str(seed))
        saved = json.loads((tmp_path / str(seed) / "config.json").read_text())["hf_layerdrop"]
        assert all(value == rate for rates in saved["rates"].values() for value in rates)
        assert saved["seed"] == seed
    configs = {id(module.config) for module in second.modules() if hasattr(module, "config")}
    assert len(configs) == len({id(module.config) for module in build(head).modules() if hasattr(module, "config")})
    remove_layerdrop(second)
    assert hasattr(first.config, "hf_layerdrop")
    assert not hasattr(second.config, "hf_layerdrop")


def test_a_second_inject_replaces_the_first(head):
    model, once, batch = build(head), build(head), batch_for(head)
    inject_layerdrop(once, LayerDropConfig(0.5, seed=2))
    inject_layerdrop(model, LayerDropConfig(1.0, seed=1))
    inject_layerdrop(model, LayerDropConfig(0.5, seed=2))
    assert model.config.to_dict() == once.config.to_dict()
    assert drawn(model, batch, 6) == drawn(once, batch, 6)
    remove_layerdrop(model)
    assert traces(model.eval()) == traces(build(head))
    with pytest.raises(LayerDropStateError, match="call inject_layerdrop first"):
        remove_layerdrop(model)


@pytest.mark.parametrize("before", [None, 0.25])
def test_an_inject_that_is_refused_changes_nothing(head, before):
    model = build(head)
    if before is not None:
        inject_layerdrop(model, before)
    expected = traces(model)
    for bad in (1.5, (0.1, 0.2), {"middle": 0.5}, LayerDropConfig(0.1, never_drop=(9,))):
        with pytest.raises(LayerDropConfigError):
            inject_layerdrop(model, bad)
        assert traces(model) == expected


def test_what_has_no_stacks_is_refused():
    albert = AlbertModel(
        AlbertConfig(vocab_size=30, embedding_size=8, hidden_size=16, num_attention_heads=2, intermediate_size=16)
    )
    expected = traces(albert)
    with pytest.raises(UnsupportedModelError, match="ALBERT runs one shared layer"):
        inject_layerdrop(albert, 0.2)
    assert traces(albert) == expected
    with pytest.raises(UnsupportedModelError, match="Linear"):
        inject_layerdrop(torch.nn.Linear(2, 2), 0.2)
    with pytest.raises(LayerDropStateError, match="call inject_layerdrop first"):
        set_rates(build("BertModel"), 0.2)
    with pytest.raises(LayerDropStateError, match="call inject_layerdrop first"):
        set_step(build("BertModel"), 3)


# --- Promise 2: rate 0 and eval are the untouched model -------------------------------------------


def test_rate_0_and_eval_are_bit_equal_to_the_untouched_model(any_head):
    model, untouched, batch = build(any_head), build(any_head), batch_for(any_head)
    inject_layerdrop(model, 0.0)
    trained, expected = output_of(model.train(), batch), output_of(untouched.train(), batch)
    assert torch.equal(trained, expected)
    assert_same_tensors(gradients_of(model, loss_of(model, batch)), gradients_of(untouched, loss_of(untouched, batch)))
    set_rates(model, 0.999)
    assert torch.equal(output_of(model.eval(), batch), output_of(untouched.eval(), batch))
    with torch.no_grad():
        assert torch.equal(output_of(model, batch), output_of(untouched, batch))
    assert not torch.equal(output_of(model.train(), batch), expected)


# --- Promise 3: a dropped layer does no work ------------------------------------------------------


def test_rates_of_zero_and_one_equal_the_model_cut_by_hand(any_head):
    model, batch = build(any_head).train(), batch_for(any_head)
    cut = cut_by_hand(model, keep_all_stacks(model, [0, 2]))
    others = [cut_by_hand(model, keep_all_stacks(model, kept)) for kept in ([1, 3], [0, 1], [0, 3], [0, 1, 2, 3])]
    inject_layerdrop(model, CUT)
    output = output_of(model, batch)
    assert torch.equal(output, output_of(cut, batch))
    for other in others:
        assert not torch.allclose(output, output_of(other, batch), atol=1e-3)
    renamed = renumbered(gradients_of(model, loss_of(model, batch)), {0: 0, 2: 1})
    assert_same_tensors(renamed, gradients_of(cut, loss_of(cut, batch)))


def renumbered(gradients, numbers):
    """Name the layers' gradients as those of the cut model."""
    renamed = {}
    for name, gradient in gradients.items():
        parts = name.split(".")
        place = next(
            (index for index, part in enumerate(parts) if part.isdigit() and parts[index - 1].startswith("layer")), None
        )
        if place is not None:
            if int(parts[place]) not in numbers:
                assert gradient is None, name
                continue
            parts[place] = str(numbers[int(parts[place])])
        renamed[".".join(parts)] = gradient
    return renamed


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
@pytest.mark.parametrize("bart", ["BartModel", "BartForConditionalGeneration"])
def test_rates_by_stack_drop_in_that_stack_alone(bart, stack):
    model, batch = build(bart).train(), batch_for(bart)
    kept = {"encoder": [0, 1, 2, 3], "decoder": [0, 1, 2, 3], stack: [1, 2]}
    cut, full = cut_by_hand(model, kept), build(bart)
    inject_layerdrop(model, {stack: (1, 0, 0, 1)})
    assert drawn(model, batch) == [kept]
    assert torch.equal(output_of(model, batch), output_of(cut, batch))
    assert not torch.allclose(output_of(full, batch), output_of(cut, batch), atol=1e-3)
    inject_layerdrop(model, {"encoder": 0.25, "decoder": (0, 0.5, 0, 1)})
    assert layerdrop_state(model).rates == {"encoder": [0.25] * 4, "decoder": [0, 0.5, 0, 1]}


def test_a_dropped_layer_is_never_entered_not_even_its_hooks(any_head):
    model, batch = build(any_head), batch_for(any_head)
    inject_layerdrop(model, CUT)
    entered = []
    for stack, layers in layers_of(model).items():
        for index, layer in enumerate(layers):
            for part in layer.modules():
                part.register_forward_pre_hook(lambda *_, place=(stack, index): entered.append(place))
                part.register_forward_hook(lambda *_, place=(stack, index): entered.append(place))
    output_of(model.train(), batch).sum().backward()
    assert {index for _, index in entered} == {0, 2}
    assert {stack for stack, _ in entered} == set(layers_of(model))
    output_of(model.eval(), batch)
    assert {index for _, index in entered} == {0, 1, 2, 3}


def test_adamw_leaves_dropped_layers_untouched_although_it_has_momentum_for_them(head):
    model, batch = build(head).train(), batch_for(head)
    inject_layerdrop(model, 0.0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    loss_of(model, batch).backward()
    optimizer.step()
    optimizer.zero_grad()
    set_rates(model, CUT)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    for _ in range(2):  # two micro-steps of one step, which both drop the layer
        loss_of(model, batch).backward()
    optimizer.step()
    for layers in layers_of(model).values():
        dropped = {id(parameter) for layer in (layers[1], layers[3]) for parameter in layer.parameters()}
        ran = {id(parameter) for layer in (layers[0], layers[2]) for parameter in layer.parameters()}
        for name, parameter in model.named_parameters():
            if id(parameter) in dropped:
                assert parameter.grad is None, name
                assert torch.equal(parameter, before[name]), name
            if (
                id(parameter) in ran and parameter in optimizer.state
            ):  # BART's decoder alone has cross attentions unused
                assert not torch.equal(parameter, before[name]), name


@pytest.mark.parametrize("given", [None, "google-bert/bert-base-uncased", BertConfig(), BertModel], ids=type)
def test_what_is_no_model_in_memory_is_refused_in_words(given):
    for call in (
        lambda: inject_layerdrop(given, 0.2),
        lambda: prune_layers(given, 2),
        lambda: sub_network(given, 2).__enter__(),
        lambda: evaluate_depths(given, [], depths=[1]),
    ):
        with pytest.raises(UnsupportedModelError, match=f"Got a {type(given).__name__}, but LayerDrop is for models"):
            call()
    for call in (lambda: remove_layerdrop(given), lambda: set_rates(given, 0.1), lambda: layerdrop_state(given)):
        with pytest.raises(LayerDropStateError, match="not injected"):
            call()


def test_what_changes_a_model_returns_it():
    model = build("BertModel")
    assert inject_layerdrop(model, 0.5) is model
    assert remove_layerdrop(model) is model
    assert prune_layers(model, 2) is model
