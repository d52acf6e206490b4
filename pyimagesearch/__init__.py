"""Fine-tune DenseNet121 on Food-11, or on photographs of your own."""
