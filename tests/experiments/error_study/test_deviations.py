from dataclasses import replace

from configs import digits, garipov_fashion_mnist, resnet18_cifar10
from experiments.error_study.deviations import deviations
from experiments.error_study.protocol import DecomposeSettings, Protocol
from experiments.workdir.fields import read_fields

# What no configuration can take away.
ALWAYS = ("Feature errors", "Compressed layers", "Beside the")


def protocol_of(module):
    return read_fields(Protocol, module.get_config().to_dict())


def starts(settings):
    return tuple(" ".join(sentence.split()[:2]) for sentence in deviations(settings))


def test_the_papers_own_studies_differ_in_the_number_of_networks():
    for module, count in ((garipov_fashion_mnist, 5), (resnet18_cifar10, 3)):
        settings = protocol_of(module)
        found = deviations(settings)
        assert found[0].startswith(f"{count} networks are trained and measured")
        assert len(found) == 2 + len(ALWAYS)
        alone = starts(replace(settings, networks=1))
        assert alone == ("TT ranks", *ALWAYS)


def test_what_a_configuration_changes_is_named():
    settings = replace(protocol_of(garipov_fashion_mnist), networks=1)
    known = set(deviations(settings))

    def told(**changes):
        (sentence,) = set(deviations(replace(settings, **changes))) - known
        return sentence

    assert "HOOI of up to 7 sweeps" in told(decompose=replace(settings.decompose, tucker_iters=7))
    assert "lowest validation loss" in told(train=replace(settings.train, best_by_metric=False))
    assert "for 95 epochs in batches" in told(train=replace(settings.train, epochs=95))
    assert "cp 5, tucker 2, tt 2" in told(deterministic_runs=2)
    assert "0.1 of the training examples" in told(data=replace(settings.data, validation_share=0.1))
    assert "700 train" in told(data=replace(settings.data, train_size=700))
    assert "30 training examples, the first ones" in told(
        measure=replace(settings.measure, feature_images=30, drawn=False)
    )
    assert "methods are others" in told(methods=("cp", "svd", "tt"))
    assert "follow a rule" in told(decompose=DecomposeSettings())


def test_another_data_set_and_network_are_named():
    found = " ".join(deviations(protocol_of(digits)))
    for words in ("The data set, digits, is", "other sizes than", "fine-tuned for 5 epochs"):
        assert words in found
