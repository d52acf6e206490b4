"""Fine-tune DenseNet121 on Food-11, or on photographs of your own."""

import os

# read when torch is imported: threads that wait sleep, and leave the CPU to other processes
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
