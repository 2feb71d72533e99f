"""Dense blocks over a feature buffer: the strategies "buffer" and "buffer_fast". `network` is the way in."""
