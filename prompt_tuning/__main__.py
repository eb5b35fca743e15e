"""`python -m prompt_tuning`: the same as the program `prompt-tuning`."""

from prompt_tuning.terminal.main import main

if __name__ == "__main__":
  main()
