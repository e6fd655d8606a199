"""What the words of the reports mean, said once for all pages."""

from __future__ import annotations

from collections.abc import Iterable

TERMS = {
    "choice": (
        "A layer, a method that decomposes its kernel (CP, Tucker, TT, SVD), and a compression. "
        "All other layers stay as they are."
    ),
    "compression": "The share of a layer\N{RIGHT SINGLE QUOTATION MARK}s weights that goes away.",
    "run": (
        "A choice is decomposed and fine-tuned several times from other random starts. Tucker, TT "
        "and SVD give the same factors every time, so that their runs differ in fine-tuning alone."
    ),
    "network": "The same architecture trained from another seed.",
    "phase": (
        "Before fine-tuning the factors are as the decomposition gave them; after it the whole "
        "network was trained for a few more epochs."
    ),
    "tau": (
        "Kendall\N{RIGHT SINGLE QUOTATION MARK}s rank correlation between an approximation error "
        "and the classification error: of all pairs of choices the share that both order alike, "
        "less the share that they order against each other. 1: the error orders the choices as the "
        "performance does; 0: it says nothing; \N{MINUS SIGN}1: the other way round."
    ),
    "absolute, relative, scaled": (
        "The norm of the difference; that over the norm of the original; that over the number of "
        "entries. The six errors are these three, of the weights and of the features."
    ),
    "weights": "Errors of the kernel itself; they need no data.",
    "features": "Errors of what comes out of the layer, over some training examples.",
    "covariance, kronecker": (
        "Norms that the data gives: by what goes into a layer, and also by the gradients of what "
        "comes out. Frobenius is the plain norm of the weights."
    ),
    "sequential": "Layer after layer, each making up for what those before it lost.",
    "calibration": "The examples that the norms of the data see; subsets are other draws.",
    "budget": "The share of the whole network that is kept.",
    "strategy": "How the ranks of all layers are chosen under a budget.",
    "re-estimated": "The means and variances of batch normalisation are taken anew.",
    "refinement": "The compressed network learns the original\N{RIGHT SINGLE QUOTATION MARK}s "
    "outputs, without labels.",
    "pruned": "Weights set to zero; a neuron without any is dead and is taken away.",
    "sparsity index, PQ index": (
        "How unevenly the size of a neuron\N{RIGHT SINGLE QUOTATION MARK}s weights is spread: "
        "low where all are alike, 1 at most, where one has it all."
    ),
    "interval": "In brackets: of a confidence of 95 %.",
}


def meanings(terms: Iterable[str]) -> dict[str, str]:
    """Some of the terms with what they mean."""
    return {term: TERMS[term] for term in terms}
