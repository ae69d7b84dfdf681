"""Train a model on large batches, or sweep over settings with `-m`; `python train.py --help` shows the config groups.

python train.py                                                    # one run
python train.py callbacks=[lr_scaling,sam,hessian] optimizer=adam  # with other settings
python train.py -m data.batch_size=16,64,256,1024                  # a sweep, and its comparison
"""

from lbtrain.app.cli import main

if __name__ == "__main__":
    main()
