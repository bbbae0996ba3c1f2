import pytest
import torch

from fsanet.attention.similarity import attend, guard_denominator, inverse_length


def test_guard_keeps_sign_and_distance():
    d = torch.tensor([5.0, -5.0, 1e-9, -1e-9, 0.0])
    torch.testing.assert_close(
        guard_denominator(d, 100), torch.tensor([5.0, -5.0, 1e-4, -1e-4, 1e-4])
    )


def test_a_token_of_rounding_errors_has_no_direction_and_gets_no_gradient():
    squared = torch.tensor([[1.0, 1e-7, -1e-7, 4.0, 1e-3]], requires_grad=True)
    inverse = inverse_length(squared)
    torch.testing.assert_close(inverse, torch.tensor([[1.0, 0.0, 0.0, 0.5, 1e1**1.5]]))
    inverse.sum().backward()
    assert squared.grad.isfinite().all()
    assert squared.grad[0, 1] == squared.grad[0, 2] == 0
    assert (inverse_length(torch.zeros(1, 5)) == 0).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_a_query_of_zero_takes_the_mean_of_the_values(dtype):
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, 6).to(dtype) for _ in range(3))
    q[..., 2] = 0
    got = attend(q, k, v, "linear_softmax", 1.0)[..., 2]
    torch.testing.assert_close(got, v.mean(-1))


@pytest.mark.parametrize("similarity", ["dot", "linear_softmax", "linear", "softmax"])
def test_other_number_of_keys_than_queries(similarity):
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 9).double(), torch.randn(2, 4, 5).double()
    v = torch.randn(2, 3, 5).double()
    got = attend(q, k, v, similarity, 0.3)
    for b in range(2):
        for p in range(9):
            if similarity == "linear_softmax":
                s = [1 + torch.cosine_similarity(q[b, :, p], k[b, :, j], dim=0) for j in range(5)]
            else:
                s = [torch.dot(q[b, :, p], k[b, :, j]) for j in range(5)]
            s = torch.stack(s)
            if similarity == "dot":
                w = s / 5
            elif similarity == "linear":
                w = (1 + 0.3 * s) / (1 + 0.3 * s).sum()
            elif similarity == "softmax":
                w = torch.softmax(0.3 * s, 0)
            else:
                w = s / s.sum()
            torch.testing.assert_close(got[b, :, p], v[b] @ w)
