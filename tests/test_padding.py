import pytest
import torch
import torch.nn.functional as F

from sphere_mini.padding import with_hidden_padding
from sphere_mini.vit import SwiGLU


@pytest.mark.parametrize(("width", "hidden", "padded"), [(128, 341, 352), (192, 512, 512)])
def test_zeros_bring_the_hidden_channels_to_a_multiple_of_16(width, hidden, padded):
    layer = SwiGLU(width)
    weight, bias, w3 = with_hidden_padding(layer.w12, layer.w3)
    assert weight.shape == (2 * padded, width)
    assert bias.shape == (2 * padded,)
    assert w3.shape == (width, padded)
    gate, value = weight.chunk(2)
    torch.testing.assert_close(torch.cat([gate[:hidden], value[:hidden]]), layer.w12.weight)
    assert not gate[hidden:].any() and not value[hidden:].any() and not w3[:, hidden:].any()


def test_weights_of_a_narrow_network_are_taken_as_they_are():
    layer = SwiGLU(64)  # 170 hidden channels
    weight, bias, w3 = with_hidden_padding(layer.w12, layer.w3)
    assert weight is layer.w12.weight and bias is layer.w12.bias and w3 is layer.w3.weight


def test_output_and_gradients_are_those_without_zeros():
    torch.manual_seed(0)
    layer = SwiGLU(128).double()
    x = torch.randn(2, 5, 128, dtype=torch.float64, requires_grad=True)
    gate, value = layer.w12(x).chunk(2, dim=-1)
    plain = layer.w3(F.silu(gate) * value)
    inputs = (x, *layer.parameters())
    expected = torch.autograd.grad(plain.square().sum(), inputs)
    found = layer(x)
    torch.testing.assert_close(found, plain)
    gradients = torch.autograd.grad(found.square().sum(), inputs)
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other)
