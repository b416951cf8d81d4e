"""/console: a page for people, and the JSON that it draws. The page holds no data and is open; the data is for this machine or
the server's key, sent in a header. Nothing is loaded from elsewhere, and what others wrote is only ever text.
"""
