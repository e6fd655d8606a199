import pytest

from experiments.workdir.places import Place, place_of

SLURM = {"SLURM_PROCID": "3", "SLURM_NTASKS": "8", "SLURM_NTASKS_PER_NODE": "4"}
MPI = {"OMPI_COMM_WORLD_RANK": "1", "OMPI_COMM_WORLD_SIZE": "2", "OMPI_COMM_WORLD_LOCAL_SIZE": "2"}
POD = {"TPU_WORKER_ID": "2", "TPU_WORKER_HOSTNAMES": "a,b,c,d"}


@pytest.mark.parametrize(
    ("asked", "environment", "place"),
    [
        ("", {}, None),
        ("2/8", {}, Place(2, 8)),
        ("0/1", SLURM, None),
        ("1/2", {**SLURM, "EXPERIMENTS_BESIDE": "2"}, Place(1, 2, 2)),
        ("", SLURM, Place(3, 8, 4)),
        ("", MPI, Place(1, 2, 2)),
        ("", POD, Place(2, 4)),
        ("", {"TPU_WORKER_ID": "0", "TPU_WORKER_HOSTNAMES": "localhost"}, None),
        ("", {"SLURM_PROCID": "0"}, None),
    ],
)
def test_the_place_is_as_asked_or_as_the_launcher_says(asked, environment, place):
    assert place_of(asked, environment) == place


@pytest.mark.parametrize(
    ("asked", "environment", "message"),
    [
        ("8/8", {}, "--process=8/8: processes are numbered from 0"),
        ("0/0", {}, "numbered from 0"),
        ("-1/2", {}, "number and count are needed, such as 2/8"),
        ("2", {}, "such as 2/8"),
        ("", {**SLURM, "SLURM_PROCID": "8"}, "SLURM: SLURM_PROCID=8, SLURM_NTASKS=8: processes"),
        ("", {**SLURM, "SLURM_NTASKS": "many"}, "SLURM_NTASKS is 'many', not a number"),
    ],
)
def test_what_is_no_place_is_told(asked, environment, message):
    with pytest.raises(ValueError, match=message):
        place_of(asked, environment)
