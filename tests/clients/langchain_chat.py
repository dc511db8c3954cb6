"""LangChain's ChatOpenAI and OpenAIEmbeddings: an answer, a stream, a tool's call, structured output, vectors."""

import json
import sys

from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from pydantic import BaseModel, Field

model, embedding_model = sys.argv[1:]  # OPENAI_BASE_URL and OPENAI_API_KEY
llm = ChatOpenAI(model=model, temperature=0, seed=1, max_tokens=60)
question = "What is the capital of France?"


@tool
def get_weather(city: str) -> str:
    """The weather in a city."""
    return f"rain in {city}"


class Review(BaseModel):
    """A film review."""

    title: str = Field(max_length=20)
    stars: int = Field(ge=1, le=5)


answer = llm.invoke(question)
streamed = "".join(chunk.content for chunk in llm.stream(question))
called = llm.bind_tools([get_weather], tool_choice="any").invoke("What is the weather in Paris?")
(call,) = called.tool_calls
result = ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])
after = llm.bind_tools([get_weather]).invoke([HumanMessage("What is the weather in Paris?"), called, result])
reviews = [
    llm.with_structured_output(Review, method=method).invoke("Review the film Heat.")
    for method in ("json_schema", "function_calling")
]
vectors = OpenAIEmbeddings(model=embedding_model, check_embedding_ctx_length=False).embed_documents(
    ["a cat", "a kitten"]
)
print(
    json.dumps(
        {
            "answer": answer.content,
            "tokens": answer.usage_metadata["total_tokens"],
            "streamed": streamed,
            "call": call,
            "after": isinstance(after, AIMessage),
            "stars": [review.stars for review in reviews],
            "cosine": sum(a * b for a, b in zip(*vectors, strict=True)),
        }
    )
)
