"""The steps. Append only: a step that was released is never changed, since ledgers out there have taken it."""
