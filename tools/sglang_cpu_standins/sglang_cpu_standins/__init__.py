"""What stock SGLang needs beside it on a machine without a GPU."""
