"""The files of data sets with their md5 digests, as torchvision lists them. Nothing is read."""


def file_digests(dataset: str) -> dict[str, str]:
    """Return the md5 digest of each file that a data set is downloaded as, by name; empty if it is not downloaded.

    Args:
        dataset: Name of the data set.
    """
    from torchvision.datasets import CIFAR10, CIFAR100, SVHN  # takes seconds to import

    if dataset == "svhn":
        return {filename: md5 for _, filename, md5 in SVHN.split_list.values()}
    archives = {"cifar10": CIFAR10, "cifar100": CIFAR100}
    return {archives[dataset].filename: archives[dataset].tgz_md5} if dataset in archives else {}
