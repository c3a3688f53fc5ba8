"""The custom resources: what people write, what agent and controller write, and the definitions generated from it.

Types and conversion need the standard library alone: the agent imports them on every node.
"""
