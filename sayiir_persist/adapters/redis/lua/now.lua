-- Answers the store's time.
return clock()
