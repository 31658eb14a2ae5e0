"""The smallest application: Flask, one page, no lifecycle hooks."""
from flask import Flask

app = Flask(__name__)


@app.get("/")
def hello():
    return "Hello, World!"
