"""Capture: kinds of input and of model, dynamic dimensions, errors that help."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from torch import fx, nn
from torch.fx.experimental.proxy_tensor import make_fx

from gqc.errors import GqcError
from gqc.frontend.capture import capture, inference
from gqc.frontend.export_fx import export_fx
from gqc.frontend.import_fx import import_fx


def input_shapes(program):
    """Shape of each input, None for a dynamic dimension."""
    names = set(program.graph_signature.user_inputs)
    nodes = [n for n in program.graph.find_nodes(op="placeholder") if n.name in names]
    return [[n if isinstance(n, int) else None for n in node.meta["val"].shape] for node in nodes]


class Add(nn.Module):
    def forward(self, x, y):
        return x + y


@pytest.mark.parametrize(
    "inputs",
    [
        (torch.randn(3, 4), torch.randn(3, 4)),
        [torch.randn(3, 4), torch.randn(3, 4)],
        {"x": torch.randn(3, 4), "y": torch.randn(3, 4)},
        ((torch.randn(3, 4),), {"y": torch.randn(3, 4)}),
        transformers.BatchEncoding({"x": torch.randn(3, 4), "y": torch.randn(3, 4)}),
    ],
    ids=["tuple", "list", "dict", "both", "BatchEncoding"],
)
def test_kinds_of_inputs(inputs):
    assert input_shapes(capture(Add(), inputs)) == [[None, 4], [None, 4]]


@pytest.mark.parametrize(
    ("example", "expected"),
    [
        (torch.randn(3, 4), [None, 4]),
        (torch.randint(9, (3, 4)), [None, None]),
        (torch.randn(3, 4, 5), [None, None, 5]),
        (torch.randn(3, 4, 5, 6), [None, 4, 5, 6]),
        (torch.randn(1, 4), [None, 4]),
        (torch.randn(1, 4, 5), [None, None, 5]),
    ],
)
def test_batch_and_sequence_are_dynamic(example, expected):
    assert input_shapes(capture(nn.Identity(), example)) == [expected]


class Wrapper(nn.Module):
    """Hands on whatever it is called with."""

    def __init__(self, forward):
        super().__init__()
        self.inner, self.linear = Add(), nn.Linear(4, 4)
        self.function = forward

    def forward(self, *args, **kwargs):
        return self.linear(self.function(self, *args, **kwargs))


class Keywords(Wrapper):
    def forward(self, **kwargs):
        return super().forward(**kwargs)


class Mixed(Wrapper):
    def forward(self, x, *args, scale=2.0, **kwargs):
        return super().forward(x, *args, **kwargs) * scale


X, Y = torch.randn(3, 4), torch.randn(3, 4)


@pytest.mark.parametrize(
    ("kind", "args", "kwargs"),
    [
        (Wrapper, (X, Y), {}),
        (Wrapper, (X,), {"y": Y}),
        (Wrapper, (), {"y": Y, "x": X}),
        (Keywords, (), {"x": X, "y": Y}),
        (Mixed, (X, Y), {"scale": 3.0}),
        (Mixed, (X,), {"y": Y}),
    ],
    ids=["args", "both", "kwargs", "keywords", "mixed", "mixed keywords"],
)
def test_inputs_that_forward_collects(kind, args, kwargs):
    model = kind(lambda self, *args, **kwargs: self.inner(*args, **kwargs))
    program = capture(model, (args, kwargs))
    assert input_shapes(program) == [[None, 4], [None, 4]]
    assert "forward" not in vars(model)
    exported = export_fx(import_fx(program))
    for rows in (1, 5):
        more = {"args": tuple(torch.randn(rows, 4) for _ in args)}
        more |= {name: torch.randn(rows, 4) if name != "scale" else 3.0 for name in kwargs}
        given = more.pop("args")
        assert torch.equal(exported(*given, **more), model(*given, **more))


def test_dynamic_shapes_of_inputs_that_forward_collects():
    model = Wrapper(lambda self, *args, **kwargs: self.inner(*args, **kwargs))
    example = (X,), {"y": Y}
    auto, none = {0: torch.export.Dim.AUTO}, {0: None}
    for shapes in ({"args": (auto,), "kwargs": {"y": auto}}, {"args_0": auto, "y": auto}):
        assert input_shapes(capture(model, example, shapes)) == [[None, 4], [None, 4]]
    fixed = capture(model, example, {"args": (none,), "kwargs": {"y": none}})
    assert input_shapes(fixed) == [[3, 4], [3, 4]]


def test_dynamic_shapes_are_the_users():
    shapes = {"input": {0: None, 1: torch.export.Dim("width", max=64)}}
    assert input_shapes(capture(nn.ReLU(), torch.randn(3, 4), shapes)) == [[3, None]]
    assert input_shapes(capture(nn.ReLU(), torch.randn(3, 4), {})) == [[3, 4]]


class Twins(nn.Module):
    def forward(self, x, x_1, x_2):
        return x - 2 * x_1 + 4 * x_2


def test_inputs_whose_names_differ_by_a_number():
    inputs = tuple(torch.randn(3, 4) for _ in range(3))
    exported = export_fx(import_fx(capture(Twins(), inputs)))
    assert torch.equal(exported(*inputs), Twins()(*inputs))
    assert torch.equal(exported(x_2=inputs[0], x_1=inputs[1], x=inputs[2]), Twins()(*inputs[::-1]))


def test_one_tensor_given_twice_is_two_inputs():
    x = torch.randn(3, 4)
    model = export_fx(import_fx(capture(Add(), (x, x))))
    assert torch.equal(model(x, 2 * x), 3 * x)


class Fixed(nn.Module):
    def forward(self, x):
        return x.view(4, 2, 8).sum(0) if x.shape[0] == 8 else x


def test_a_dimension_that_the_model_fixes_is_named():
    with pytest.warns(UserWarning, match=r"x: the model fixes dimension 0 at 8; .*dynamic_shapes"):
        program = capture(Fixed(), torch.randn(8, 8))
    model = export_fx(import_fx(program))
    with pytest.raises(GqcError, match=r"x has size 6 in dimension 0 \(8\); the model takes 8"):
        model(torch.randn(6, 8))


def test_no_warning_where_nothing_is_fixed(build, cases):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        capture(build("convnet"), cases["convnet"].example)


def test_the_model_is_left_as_it_was(build):
    model = build("llama")
    model.train()
    model.model.norm.eval()
    with inference(model):
        assert not any(m.training for m in model.modules())
        assert not model.config.use_cache
        assert not torch.is_grad_enabled()
    assert model.training and not model.model.norm.training and model.config.use_cache
    model.eval()


def check(model, expected, *rows):
    """The graph module of a captured model against a function, at several batch sizes."""
    exported = export_fx(import_fx(model))
    for n in rows:
        x = torch.randn(n, 16)
        assert torch.equal(exported(x), expected(x))


def test_exported_program(build):
    """One with gradients: its no_grad region, a higher-order op, is inlined."""

    class Frozen(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = build("mlp")

        def forward(self, x):
            with torch.no_grad():
                scale = x.abs().amax()
            return self.inner(x * scale)

    model = Frozen()
    auto = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (torch.randn(3, 16),), dynamic_shapes=auto)
    check(capture(program), model, 1, 5)


@pytest.mark.parametrize("given", [(torch.randn(3, 16),), (None, {})])
def test_what_an_exported_program_has_already_is_refused(given, build):
    program = torch.export.export(build("mlp"), (torch.randn(3, 16),))
    with pytest.raises(GqcError, match=r"an ExportedProgram has its inputs.*exported from"):
        capture(program, *given)


def test_symbolically_traced_graph_module(build):
    model = build("mlp")
    check(capture(fx.symbolic_trace(model), torch.randn(3, 16)), model, 1, 5)


def test_graph_modules_that_carry_shapes_need_no_inputs(build):
    model = build("mlp")
    auto = ({0: torch.export.Dim.AUTO},)
    unlifted = torch.export.export(model, (torch.randn(3, 16),), dynamic_shapes=auto).module()
    traced = make_fx(model, tracing_mode="symbolic", _allow_non_fake_inputs=True)
    for graph_module in (unlifted, traced(torch.randn(3, 16))):
        check(capture(graph_module), model, 1, 5)


def test_graph_module_of_dynamo(build):
    """Weights are inputs of it, and so is the symbol of the batch."""
    seen = []

    def backend(graph_module, inputs):
        seen.append((graph_module, inputs))
        return graph_module

    torch.compile(build("mlp"), backend=backend, dynamic=True)(torch.randn(3, 16))
    graph_module, inputs = seen[0]
    exported = export_fx(import_fx(capture(graph_module)))

    def of_five_rows(x):
        if isinstance(x, torch.Tensor):
            return torch.randn(5, 16) if x.shape == (3, 16) else x
        return 5

    other = [of_five_rows(x) for x in inputs]
    assert torch.equal(exported(*other)[0], graph_module(*other)[0])


class Chooses(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Opaque(nn.Module):
    def forward(self, x):
        return x, self


@pytest.mark.parametrize(
    ("model", "inputs", "message"),
    [
        (
            nn.Sequential(nn.Linear(4, 4), nn.Sequential(Chooses())),
            torch.randn(2, 4),
            r"cannot capture Sequential \(in 1.0\): Could not guard on data[^§]*torch.where",
        ),
        (Opaque(), torch.randn(2, 4), r"Opaque.*in output[^§]*return tensors, in tuples"),
        (Add(), torch.randn(2, 4), r"missing a required argument: 'y'\n.*those of forward"),
        (Add(), None, "Add does not tell the shapes of its inputs: pass example_inputs"),
    ],
    ids=["control flow", "output", "arguments", "no inputs"],
)
def test_errors_name_the_module_and_the_remedy(model, inputs, message):
    with pytest.raises(GqcError, match=message):
        capture(model, inputs)


def test_error_of_dynamic_shapes():
    shapes = ({0: torch.export.Dim("rows")},)
    with pytest.raises(GqcError, match=r"[^§]*give dynamic_shapes that its constraints allow"):
        capture(Fixed(), torch.randn(8, 8), shapes)
