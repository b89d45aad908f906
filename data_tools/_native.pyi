import numpy as np
import numpy.typing as npt

def gather_documents(
    spool: npt.NDArray[np.int32],
    starts: npt.NDArray[np.int64],
    lengths: npt.NDArray[np.int32],
    order: npt.NDArray[np.int64],
    end_of_document: int,
    out: npt.NDArray[np.int32],
) -> int: ...
def write_index(path: bytes, lengths: npt.NDArray[np.int32], dtype_code: int, itemsize: int) -> None: ...
