from .receiver import receive as receive
