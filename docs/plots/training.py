import pandas as pd

import st_predict as stp

history = pd.DataFrame(
    {
        "epoch": range(8),
        "train_loss": [2.1, 1.5, 1.2, 1.0, 0.9, 0.82, 0.76, 0.7],
        "val_loss": [2.0, 1.6, 1.4, 1.3, 1.27, 1.26, 1.28, 1.31],
        "val_pearson": [0.02, 0.11, 0.19, 0.24, 0.27, 0.28, 0.27, 0.26],
    }
)

stp.pl.training(history)
