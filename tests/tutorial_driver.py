# A training script as a reader of the tutorial would write it; test_all_three.py runs it.

# import the necessary packages
import torch
from torch import nn, optim
from torchvision import transforms
from torchvision.models import densenet121

from pyimagesearch import config, create_dataloaders
from pyimagesearch.food_classifier import FoodClassifier

trainTransform = transforms.Compose(
    [
        transforms.RandomResizedCrop(32),
        transforms.ToTensor(),
        transforms.Normalize(mean=config.MEAN, std=config.STD),
    ]
)
(trainDS, trainLoader) = create_dataloaders.get_dataloader(
    config.TRAIN, transforms=trainTransform, bs=5
)
(valDS, valLoader) = create_dataloaders.get_dataloader(
    config.VAL, transforms=trainTransform, bs=5, shuffle=False
)
model = FoodClassifier(densenet121(weights=None), len(trainDS.classes))
model = model.to(config.DEVICE)
lossFunc = nn.CrossEntropyLoss()
opt = optim.Adam(model.parameters(), lr=config.LR)
scaler = torch.amp.GradScaler("cuda", enabled=torch.cuda.is_available())
model.train()
for x, y in trainLoader:
    with torch.autocast(config.DEVICE.type, enabled=torch.cuda.is_available()):
        (x, y) = (x.to(config.DEVICE), y.to(config.DEVICE))
        pred = model(x)
        loss = lossFunc(pred, y)
    scaler.scale(loss).backward()
    scaler.step(opt)
    scaler.update()
    opt.zero_grad()
torch.save(model.state_dict(), config.MODEL_PATH)
print(len(trainDS), len(valDS), trainDS.classes)
